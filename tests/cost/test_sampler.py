"""Sampling under a budget against `space.sample` conditioned on it: by brute force, by rejection, by convolution."""

import functools
import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch
from cost_spaces import ALL_LIMITS, DIMENSIONS, WIDE
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, ks_2samp
from strategies import brute_size, members_with_probability, spaces

from llmnas.cost import COSTS, Budget, BudgetSampler, Workload, costs, count_params, sample
from llmnas.cost.tables import reachable
from llmnas.errors import UserError
from llmnas.space import SearchSpace

# one hidden size and one depth: the parameters are a sum of 16 independent layers, their distribution a convolution
SUM = SearchSpace.from_dict(
    {"base": {"vocab_size": 200}, "layers": 16, "hidden_size": 32, "depth": 16, **DIMENSIONS, "queries_per_group": 1}
)


def seeded(seed=0):
    return np.random.default_rng(seed)


def test_limits_beyond_64_bits_are_limits():
    budget = Budget(min_params=1, max_params=10**30)
    assert budget.admits(WIDE.base, sample(WIDE, seeded(), budget))


def params_of(archs, base):
    return [count_params(arch, base).total for arch in archs]


def layer_params(hidden_size, queries, ffn_sizes):
    """{parameters of one layer: probability}, for the attention choices of `DIMENSIONS`."""
    layer = Counter()
    for kv_heads, head_dim, ffn_size in itertools.product((1, 2, 4), (8, 16), ffn_sizes):
        attention = 2 * kv_heads * head_dim * (queries + 1)
        layer[hidden_size * (attention + 3 * ffn_size + 2)] += 1 / (6 * len(ffn_sizes))
    return layer


def convolve(total, layer, times):
    """The distribution of a sum of independent draws, one from `total` and `times` from `layer`."""
    for _ in range(times):
        longer = Counter()
        for (a, p), (b, q) in itertools.product(total.items(), layer.items()):
            longer[a + b] += p * q
        total = longer
    return total


@functools.cache
def exact_distribution(name):
    """{parameters: probability} under `sample` of the space, ascending."""
    hidden_sizes, queries, depths = {"one shape": ([32], [1], [16]), "mixed": ([32, 48, 64], [1, 2], [3, 4, 6])}[name]
    total = Counter()
    for hidden_size, group, depth in itertools.product(hidden_sizes, queries, depths):
        outside = {(200 + 1) * hidden_size: 1 / (len(hidden_sizes) * len(queries) * len(depths))}
        total.update(convolve(outside, layer_params(hidden_size, group, (32, 64, 128, 256)), depth))
    return dict(sorted(total.items()))


def goodness(counts, expected, draws):
    """Chi-square p-value, with cells joined until each expects at least eight."""
    observed, wanted, joined = [], [], [0, 0.0]
    for value, probability in expected.items():
        joined = [joined[0] + counts.get(value, 0), joined[1] + probability * draws]
        if joined[1] >= 8:
            observed.append(joined[0])
            wanted.append(joined[1])
            joined = [0, 0.0]
    observed[-1] += joined[0]
    wanted[-1] += joined[1]
    assert len(observed) > 1
    return chisquare(observed, wanted).pvalue


@st.composite
def spaces_with_budgets(draw):
    """Limits on one to three costs, all met by one architecture and each by itself often not by others."""
    space = draw(spaces(max_layers=3))
    workload = draw(st.sampled_from([Workload(), Workload(batch=2, context=40, bytes_per_value=4)]))
    found = costs(space.sample(seeded(draw(st.integers(0, 1000)))), space.base, workload)
    limits = {}
    for name in draw(st.lists(st.sampled_from(COSTS), min_size=1, unique=True)):
        sides = draw(st.sampled_from([("min",), ("max",), ("min", "max")]))
        limits |= {f"{side}_{name}": found[name] * (0.9 if side == "min" else 1.1) for side in sides}
    return space, Budget(**limits, workload=workload)


@given(spaces_with_budgets())
@settings(max_examples=40)
def test_all_samples_are_admitted_members(case):
    space, budget = case
    for arch in BudgetSampler(space, budget).sample_many(seeded(), 20):
        assert space.contains(arch)
        assert budget.admits(space.base, arch)


@given(spaces_with_budgets())
@settings(max_examples=12, derandomize=True)
def test_every_admitted_member_has_its_probability(case):
    space, budget = case
    assume(brute_size(space) <= 3000)
    members = members_with_probability(space)
    admitted = {arch: p for arch, p in members.items() if budget.admits(space.base, arch)}
    assume(1 < len(admitted) <= 150)
    mass = sum(admitted.values())
    draws = 1500
    counts = Counter(BudgetSampler(space, budget).sample_many(seeded(), draws))
    assert set(counts) <= set(admitted)
    assert goodness(counts, {arch: p / mass for arch, p in admitted.items()}, draws) > 1e-5


BUDGETS = {
    "low tail": Budget(max_params=80_000),
    "high tail": Budget(min_params=270_000),
    "band": Budget(min_params=120_000, max_params=130_000),
    "flops": Budget(max_flops_per_token=300_000),
    "memory": Budget(max_memory_bytes=400_000, workload=Workload(batch=2, context=64)),
    "memory that activations rule": Budget(max_memory_bytes=2_500_000, workload=Workload(batch=16, context=128)),
    "all three": ALL_LIMITS,
}


@pytest.fixture(scope="module")
def pool():
    rng = seeded(1)
    return [WIDE.sample(rng) for _ in range(12_000)]


@pytest.mark.parametrize("name", BUDGETS)
def test_the_distribution_is_that_of_rejection(pool, name):
    budget = BUDGETS[name]
    wanted = [arch for arch in pool if budget.admits(WIDE.base, arch)]
    assert 80 < len(wanted) < 0.9 * len(pool)
    found = BudgetSampler(WIDE, budget).sample_many(seeded(2), 1500)
    assert all(budget.admits(WIDE.base, arch) for arch in found)
    statistics = {
        "params": lambda arch: count_params(arch, WIDE.base).total,
        "hidden_size": lambda arch: arch.hidden_size,
        "depth": lambda arch: arch.depth,
        "first layer": lambda arch: arch.kept[0][0],
        "queries": lambda arch: arch.kept[0][1].queries_per_group,
        "ffn": lambda arch: sum(spec.ffn_size for _, spec in arch.kept),
        "attention": lambda arch: sum(spec.kv_heads * spec.head_dim for _, spec in arch.kept),
        "last ffn": lambda arch: arch.kept[-1][1].ffn_size,
    }
    for label, statistic in statistics.items():
        pvalue = ks_2samp([statistic(a) for a in found], [statistic(a) for a in wanted]).pvalue
        assert pvalue > 1e-4, label


@pytest.mark.parametrize("tail", ["low", "high"])
@pytest.mark.parametrize(
    ("space", "name", "rarity"), [(SUM, "one shape", 1e-6), (SUM, "one shape", 1e-10), (WIDE, "mixed", 3e-5)]
)
def test_one_in_a_million_is_drawn_with_the_exact_distribution(space, name, rarity, tail):
    expected = exact_distribution(name)
    values = list(expected)[:: 1 if tail == "low" else -1]
    mass = np.cumsum([expected[value] for value in values])
    last = int(np.searchsorted(mass, rarity))
    assert rarity <= mass[last] < 5 * rarity
    budget = Budget(max_params=values[last]) if tail == "low" else Budget(min_params=values[last])
    draws = 10_000
    found = params_of(BudgetSampler(space, budget).sample_many(seeded(), draws), space.base)
    assert set(found) <= set(values[: last + 1])
    conditional = {value: expected[value] / mass[last] for value in values[: last + 1]}
    assert goodness(Counter(found), conditional, draws) > 1e-5


@pytest.mark.parametrize("limit", [{"max_params": 60_000}, {"min_params": 120_000, "max_params": 125_000}])
def test_depths_and_widths_are_mixed_as_in_the_space(limit):
    expected = exact_distribution("mixed")
    budget, draws = Budget(**limit), 10_000
    low, high = budget.limits()["params"]
    inside = {value: p for value, p in expected.items() if low <= value <= high}
    mass = sum(inside.values())
    found = params_of(BudgetSampler(WIDE, budget).sample_many(seeded(), draws), WIDE.base)
    assert goodness(Counter(found), {value: p / mass for value, p in inside.items()}, draws) > 1e-5


def test_a_narrow_band_in_the_tail():
    expected = exact_distribution("one shape")
    values = list(expected)
    first = int(np.searchsorted(np.cumsum(list(expected.values())), 1e-5))
    band = values[first : first + 3]
    budget = Budget(min_params=band[0], max_params=band[-1])
    found = params_of(BudgetSampler(SUM, budget).sample_many(seeded(), 600), SUM.base)
    mass = sum(expected[value] for value in band)
    assert mass < 1e-5
    assert goodness(Counter(found), {value: expected[value] / mass for value in band}, 600) > 1e-5


def test_a_rare_value_in_the_middle_is_not_called_impossible():
    """One value of the cost near its median, met by two draws in a million: no exponential tilt helps."""
    ffn_sizes = [1 + i + 211 * i**3 for i in range(12)]
    space = SearchSpace.from_dict(
        {**SUM.model_dump(), "ffn_size": {"choices": ffn_sizes, "per_layer": True}, "layers": 6, "depth": 6}
    )
    half = convolve(Counter({0: 1.0}), layer_params(32, 1, ffn_sizes), 3)
    target = 42_498_080
    layers = target - 201 * 32
    assert 1e-6 < sum(p * half[layers - value] for value, p in half.items() if layers - value in half) < 2e-6
    found = BudgetSampler(space, Budget(min_params=target, max_params=target)).sample(seeded())
    assert params_of([found], space.base) == [target]


DEEP = SearchSpace.from_dict(
    {
        "base": {"vocab_size": 4096, "tied": False},
        "layers": 24,
        "hidden_size": list(range(256, 1025, 64)),
        "depth": list(range(8, 25)),
        "kv_heads": {"choices": [2, 4, 8], "per_layer": True},
        "queries_per_group": {"choices": [1, 2, 4], "per_layer": True},
        "head_dim": {"choices": [32, 64], "per_layer": True},
        "ffn_size": {"choices": list(range(512, 4097, 256)), "per_layer": True},
    }
)


@pytest.mark.parametrize("seed", range(6))
def test_an_exact_parameter_count_is_found_although_one_width_and_depth_alone_have_it(seed):
    """Of 3e59 architectures; the residue of the count says how many layers there are."""
    arch = DEEP.sample(seeded(seed))
    params = count_params(arch, DEEP.base).total
    found = BudgetSampler(DEEP, Budget(min_params=params, max_params=params)).sample(seeded(seed))
    assert count_params(found, DEEP.base).total == params
    assert (found.hidden_size, found.depth) == (arch.hidden_size, arch.depth)
    with pytest.raises(UserError, match=rf"{params + 1:,} <= params <= {params + 1:,} \(no sum of layers does\)"):
        BudgetSampler(DEEP, Budget(min_params=params + 1, max_params=params + 1)).sample(seeded(seed))


@given(spaces(max_layers=2, kinds=True), st.data())
@settings(max_examples=25)
def test_what_is_called_impossible_has_no_member(space, data):
    assume(brute_size(space) <= 2000)
    workload = Workload(batch=2, context=8)
    members = [costs(arch, space.base, workload) for arch in members_with_probability(space)]
    name = data.draw(st.sampled_from(COSTS))
    low = data.draw(st.sampled_from(members))[name] + data.draw(st.sampled_from([0, 1, -1, 0.5]))
    budget = Budget(
        **{f"min_{name}": low, f"max_{name}": low + data.draw(st.sampled_from([0, 1, 8]))}, workload=workload
    )
    inside = any(budget.limits()[name][0] <= member[name] <= budget.limits()[name][1] for member in members)
    try:
        BudgetSampler(space, budget).sample(seeded())
    except UserError:
        assert not inside
    else:
        assert inside


@given(spaces(max_layers=2, kinds=True))
@settings(max_examples=40)
def test_extremes_of_every_kind_of_layer_are_those_of_the_members(space):
    assume(brute_size(space) <= 3000)
    workload = Workload(batch=2, context=8)
    members = [costs(arch, space.base, workload) for arch in members_with_probability(space)]
    for name in COSTS:
        found = [member[name] for member in members]
        assert reachable(space, name, workload) == (min(found), max(found))


@given(spaces(max_layers=2, kinds=True), st.sampled_from(COSTS), st.sampled_from([0.2, 0.5, 0.8]), st.booleans())
@settings(max_examples=25)
def test_members_of_every_kind_of_layer_have_their_probability(space, name, quantile, below):
    assume(brute_size(space) <= 2000)
    workload = Workload(batch=2, context=8)
    members = members_with_probability(space)
    limit = float(np.quantile([costs(arch, space.base, workload)[name] for arch in members], quantile))
    budget = Budget(**{f"{'max' if below else 'min'}_{name}": limit}, workload=workload)
    inside = {arch: p for arch, p in members.items() if budget.admits(space.base, arch)}
    draws = 2000
    counts = Counter(BudgetSampler(space, budget).sample_many(seeded(), draws))
    assert set(counts) <= set(inside)
    mass = sum(inside.values())
    if max(inside.values()) < 0.9 * mass:
        assert goodness(counts, {arch: p / mass for arch, p in inside.items()}, draws) > 1e-6


def test_flops_and_params_against_each_other():
    """Attention costs FLOPs beyond its weights: many parameters but few FLOPs asks for wide FFNs and few heads."""
    workload = Workload(context=1024)
    generous = [costs(arch, WIDE.base, workload) for arch in BudgetSampler(WIDE, None).sample_many(seeded(), 2000)]
    flops = float(np.quantile([c["flops_per_token"] for c in generous], 0.3))
    params = int(np.quantile([c["params"] for c in generous if c["flops_per_token"] <= flops], 0.99))
    budget = Budget(min_params=params, max_flops_per_token=flops, workload=workload)
    found = BudgetSampler(WIDE, budget).sample_many(seeded(), 100)
    assert all(budget.admits(WIDE.base, arch) for arch in found)
    assert len(set(found)) > 50


def test_draws_depend_on_the_generator_alone():
    results = []
    for disturb in (1, 2):
        np.random.seed(disturb)
        random.seed(disturb)
        torch.manual_seed(disturb)
        sampler = BudgetSampler(WIDE, BUDGETS["all three"])
        results.append([sampler.sample_many(seeded(5), 5), [sample(WIDE, seeded(6), BUDGETS["band"])]])
    assert results[0] == results[1]


def test_without_limits_it_is_the_space_itself():
    expected = [WIDE.sample(rng) for rng in [seeded(3)] for _ in range(4)]
    assert BudgetSampler(WIDE, None).sample_many(seeded(3), 4) == expected
    assert BudgetSampler(WIDE, Budget()).sample_many(seeded(3), 4) == expected
    assert sample(WIDE, seeded(3)) == expected[0]


def test_the_same_space_built_twice_gives_the_same_draw():
    again = SearchSpace.from_dict(WIDE.model_dump())
    assert sample(again, seeded(), BUDGETS["band"]) == sample(WIDE, seeded(), BUDGETS["band"])
