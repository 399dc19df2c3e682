"""Which networks a step trains: the kinds, the budget, the distribution, and nothing but (seed, step)."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from llmnas.cost import Budget, bands, count_params
from llmnas.errors import UserError
from llmnas.space import SearchSpace
from llmnas.train.sampling import OneNetwork, SupernetSampler, band_samplers, largest_within, parameter_histogram
from llmnas.train.settings import SamplerSettings

SPACE = SearchSpace.from_dict(
    {
        "base": {"vocab_size": 64},
        "layers": 6,
        "hidden_size": [32, 48],
        "depth": [2, 3, 4, 5, 6],
        "kv_heads": {"choices": [1, 2], "per_layer": True},
        "queries_per_group": [1, 2],
        "head_dim": [8],
        "ffn_size": {"choices": [16, 32, 64, 128], "per_layer": True},
    }
)
LEAST, MOST = (count_params(arch, SPACE.base).total for arch in (SPACE.smallest(), SPACE.largest()))
BUDGET = Budget(max_params=(LEAST + MOST) // 3)
KINDS = ["single", "uniform", "sandwich"]
DISTRIBUTIONS = ["centred", "uniform"]


def sampler(seed=0, budget=None, space=SPACE, **settings):
    return SupernetSampler(space, budget, SamplerSettings(**settings), seed)


def params(arch):
    return count_params(arch, SPACE.base).total


def test_sandwich_is_the_largest_some_random_and_the_smallest():
    found = sampler(kind="sandwich", random=3).networks(5)
    assert len(found) == 5
    assert (found[0], found[-1]) == (SPACE.largest(), SPACE.smallest())
    assert len(set(found)) == 5


def test_uniform_is_random_networks_only():
    steps = [sampler(kind="uniform", random=3).networks(step) for step in range(20)]
    assert {len(step) for step in steps} == {3}
    assert len({arch for step in steps for arch in step}) == 60


@pytest.mark.parametrize("every", [1, 3, 4])
def test_single_trains_the_largest_and_the_smallest_in_turn(every):
    drawn = sampler(kind="single", anchor_every=every)
    for step in range(6 * every):
        (arch,) = drawn.networks(step)
        if step % every:
            assert arch == drawn.draw(step, 0)
        else:
            assert arch == (SPACE.smallest() if step // every % 2 else SPACE.largest())


def test_single_without_anchors_draws_every_network():
    drawn = sampler(kind="single", anchor_every=0)
    assert [drawn.networks(step) for step in range(12)] == [[drawn.draw(step, 0)] for step in range(12)]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_network_is_within_the_budget(kind, distribution):
    drawn = sampler(budget=BUDGET, kind=kind, distribution=distribution, largest="budget")
    for step in range(30):
        found = drawn.networks(step)
        assert all(SPACE.contains(arch) and BUDGET.admits(SPACE.base, arch) for arch in found)


def test_the_largest_is_the_spaces_or_the_budgets():
    assert not BUDGET.admits(SPACE.base, SPACE.largest())
    assert sampler(budget=BUDGET, kind="sandwich", largest="space").networks(0)[0] == SPACE.largest()
    inside = sampler(budget=BUDGET, kind="sandwich", largest="budget").networks(0)[0]
    assert 0.97 * BUDGET.max_params < params(inside) <= BUDGET.max_params
    assert largest_within(SPACE, None, 0) == largest_within(SPACE, Budget(max_params=MOST), 0) == SPACE.largest()


def band_counts(drawn, draws=800):
    """How many of the draws lie in each of 8 bands of equal width."""
    counts = Counter(int((params(drawn.draw(i, 0)) - LEAST) / (MOST - LEAST) * 8 * (1 - 1e-9)) for i in range(draws))
    return [counts[band] for band in range(8)]


def test_uniform_parameter_counts_are_flat_and_centred_ones_are_not():
    flat, centred = (band_counts(sampler(distribution=name)) for name in reversed(DISTRIBUTIONS))
    assert chisquare(flat).pvalue > 0.01
    assert chisquare(centred).pvalue < 1e-6
    assert centred[-1] < 20 < min(flat)


def test_bands_without_members_are_left_out():
    """Two sizes only: 6 of 8 bands are empty, and the draws are even between the other two."""
    gaps = SearchSpace.from_dict(
        {
            "base": {"vocab_size": 64}, "layers": 2, "hidden_size": [32, 64], "depth": 2, "kv_heads": 1,
            "queries_per_group": 1, "head_dim": 8, "ffn_size": 16,
        }
    )  # fmt: skip
    assert len(bands(gaps, None, 8)) == 8
    assert len(band_samplers(gaps, None, 0)) == 2
    drawn = sampler(space=gaps, distribution="uniform")
    widths = Counter(drawn.draw(i, 0).hidden_size for i in range(200))
    assert chisquare([widths[32], widths[64]]).pvalue > 0.01


@settings(max_examples=30)
@given(st.sampled_from(KINDS), st.sampled_from(DISTRIBUTIONS), st.integers(0, 2**31), st.permutations(range(6)))
def test_networks_depend_on_seed_and_step_alone(kind, distribution, seed, order):
    first, again = (sampler(seed, BUDGET, kind=kind, distribution=distribution) for _ in range(2))
    expected = [first.networks(step) for step in range(6)]
    random.seed(seed)
    np.random.seed(seed % 1000)  # must not matter
    assert {step: again.networks(step) for step in order} == dict(enumerate(expected))


def test_another_seed_draws_other_networks():
    drawn = [sampler(seed=seed, kind="uniform", random=8).networks(0) for seed in (0, 1)]
    assert not set(drawn[0]) & set(drawn[1])


def test_an_impossible_budget_is_refused_by_name():
    for distribution in DISTRIBUTIONS:
        with pytest.raises(UserError, match="budget: max_params"):
            sampler(budget=Budget(max_params=LEAST - 1), distribution=distribution)


def test_one_network_is_always_the_same():
    one = OneNetwork(SPACE.middle())
    assert one.networks(0) == one.networks(7) == [SPACE.middle()]


def test_the_histogram_is_of_what_is_drawn():
    drawn = sampler(budget=BUDGET)
    found = parameter_histogram(SPACE, drawn, draws=50)
    counts = sorted(params(drawn.draw(i, 0)) for i in range(50))
    assert list(found) == [f"sampled_params_p{q}" for q in (1, 10, 25, 50, 75, 90, 99)]
    assert list(found.values()) == sorted(found.values())
    assert counts[0] <= found["sampled_params_p1"] < found["sampled_params_p99"] <= counts[-1]
    assert found["sampled_params_p50"] == np.median(counts)


PHASES = [
    {"start": 10, "open": ["ffn_size"]},
    {"start": 20, "open": ["depth", "kv_heads"]},
    {"start": 30, "open": ["hidden_size"]},
]


def varying(archs):
    """Which dimensions take more than one value."""
    found = {"hidden_size": {a.hidden_size for a in archs}, "depth": {a.depth for a in archs}}
    for name in ("kv_heads", "queries_per_group", "ffn_size"):
        found[name] = {getattr(spec, name) for a in archs for _, spec in a.kept}
    return {name for name, values in found.items() if len(values) > 1}


def test_progressive_opens_one_dimension_after_the_other():
    drawn = sampler(kind="progressive", phases=PHASES, anchor_every=0)
    archs = [drawn.networks(step) for step in range(80)]
    assert all(len(step) == 1 for step in archs)
    stages = [[a for (a,) in archs[i : i + 10]] for i in (0, 10, 20)] + [[a for (a,) in archs[30:]]]
    assert set(stages[0]) == {SPACE.largest()}
    assert [varying(stage) for stage in stages] == [
        set(), {"ffn_size"}, {"ffn_size", "depth", "kv_heads"}, {"ffn_size", "depth", "kv_heads", "hidden_size"},
    ]  # fmt: skip
    assert all(SPACE.contains(a) for stage in stages for a in stage)
    assert {a.layers[0] for a in stages[1]} != {None}
    assert [drawn.networks(step) for step in range(80)] == archs


def test_progressive_anchors_are_those_of_what_is_open():
    drawn = sampler(kind="progressive", phases=PHASES, anchor_every=1)
    (largest,), (smallest,) = drawn.networks(12), drawn.networks(13)
    assert largest == SPACE.largest()
    assert smallest.hidden_size == 48
    assert {spec.ffn_size for _, spec in smallest.kept} == {16}
    assert smallest.depth == 6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "progressive"}, "need each other"),
        ({"kind": "single", "phases": PHASES}, "need each other"),
        ({"kind": "progressive", "phases": PHASES[::-1]}, "one after the other"),
        ({"kind": "progressive", "phases": [PHASES[0], {"start": 40, "open": ["ffn_size"]}]}, "opens once"),
    ],
)
def test_malformed_phases_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        SamplerSettings(**wrong)


def test_a_phase_that_opens_nothing_of_the_space_is_named():
    with pytest.raises(UserError, match="'width' is no dimension; allowed: hidden_size, depth, kv_heads"):
        sampler(kind="progressive", phases=[{"start": 0, "open": ["width"]}])
