"""Strict fairness, counted: over a cycle every choice is trained equally often, with a budget and without."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import spaces
from test_sampling import SPACE

from llmnas.cost import Budget, count_params
from llmnas.errors import UserError
from llmnas.space import SearchSpace
from llmnas.train.fair import FairCycle, cycle_length
from llmnas.train.sampling import SupernetSampler
from llmnas.train.settings import SamplerSettings


def counts(archs, pick):
    return Counter(value for arch in archs for value in pick(arch))


def assert_even(found, choices):
    assert set(found) == set(choices)
    assert len(set(found.values())) == 1, found


def assert_fair(space, archs):
    """The promise, counted by brute force."""
    assert_even(counts(archs, lambda a: [a.hidden_size]), space.hidden_size)
    assert_even(counts(archs, lambda a: [a.depth]), space.depth.choices)
    for name in space.shared_dimensions:
        assert_even(
            counts(archs, lambda a, name=name: {getattr(s, name) for _, s in a.kept}), space.dimension(name).choices
        )
    kept = counts(archs, lambda a: [i for i, _ in a.kept])
    if space.depth.policy == "any":
        assert_even(kept, range(space.layers))
    if space.depth.policy == "keep_ends":
        assert kept[0] == kept[space.layers - 1] == len(archs)
        assert len({kept[i] for i in range(1, space.layers - 1)}) <= 1
    for layer in kept:
        for name in space.layer_dimensions:
            found = counts(archs, lambda a, i=layer, name=name: [getattr(a.layers[i], name)] if a.layers[i] else [])
            assert_even(found, space.dimension(name).choices)


@settings(max_examples=40)
@given(spaces(most_choices=3), st.integers(0, 2**31))
def test_every_choice_is_trained_equally_often_in_a_cycle(space, seed):
    length = cycle_length(space)
    assume(length <= 400)
    cycle = FairCycle(space, None, seed)
    assert cycle.length == length
    for first in (0, length):
        archs = [cycle.network(first + n) for n in range(length)]
        assert all(space.contains(arch) for arch in archs)
        assert_fair(space, archs)


def test_no_shorter_cycle_would_do():
    """Two widths, five depths, six layers kept 20 / 6 times a round, four FFN sizes and two of KV heads."""
    length = cycle_length(SPACE)
    assert length % 10 == 0
    shorter = [n for n in range(10, length, 10) if n // 5 * 20 % (6 * 4) == 0]
    assert shorter == []
    assert length // 5 * 20 % (6 * 4) == 0


def test_on_the_way_counts_differ_by_one_at_most():
    cycle = FairCycle(SPACE, None, 3)
    for end in range(1, cycle.length):
        found = Counter(cycle.network(n).hidden_size for n in range(end))
        assert max(found.values()) - min(found[h] for h in SPACE.hidden_size) <= 1


def test_one_step_of_as_many_networks_as_choices_is_fairnas():
    """With m blocks in every layer and nothing else to choose, m networks a step use each block once."""
    space = SearchSpace.from_dict(
        {
            "base": {"vocab_size": 64}, "layers": 5, "hidden_size": [32], "depth": 5, "kv_heads": 1,
            "queries_per_group": 1, "head_dim": 8, "ffn_size": {"choices": [16, 32, 64], "per_layer": True},
        }
    )  # fmt: skip
    sampler = SupernetSampler(space, None, SamplerSettings(kind="fair", random=3), 0)
    for step in range(20):
        archs = sampler.networks(step)
        for layer in range(5):
            assert sorted(arch.layers[layer].ffn_size for arch in archs) == [16, 32, 64]
    assert len({tuple(s.ffn_size for _, s in a.kept) for step in range(20) for a in sampler.networks(step)}) > 30


LEAST, MOST = (count_params(arch, SPACE.base).total for arch in (SPACE.smallest(), SPACE.largest()))


def test_within_a_budget_it_is_as_fair():
    budget = Budget(max_params=MOST * 36 // 100, min_params=2 * LEAST)
    plain, cycle = FairCycle(SPACE, None, 0), FairCycle(SPACE, budget, 0)
    archs = [plain.network(n) for n in range(cycle.length)]
    assert not all(budget.admits(SPACE.base, arch) for arch in archs)
    archs = [cycle.network(n) for n in range(cycle.length)]
    assert all(budget.admits(SPACE.base, arch) and SPACE.contains(arch) for arch in archs)
    assert_fair(SPACE, archs)


def test_a_budget_that_cannot_be_fair_is_refused():
    space = SearchSpace.from_dict({**SPACE.model_dump(), "layers": 2, "depth": [1, 2]})
    most = count_params(space.largest(), space.base).total
    with pytest.raises(UserError, match=r"kind: fair: .* stay outside of the budget"):
        FairCycle(space, Budget(min_params=most), 0).network(0)


def test_a_cycle_without_end_is_refused():
    sizes = {"kv_heads": 13, "queries_per_group": 17, "ffn_size": 19, "head_dim": 11}
    values = {name: {"choices": [2 * n for n in range(1, count + 1)]} for name, count in sizes.items()}
    space = SearchSpace.from_dict({**SPACE.model_dump(), **values, "hidden_size": [4, 8, 12]})
    with pytest.raises(UserError, match="cycles of more than 100,000 networks"):
        cycle_length(space)


@given(st.permutations(range(0, 120, 7)), st.integers(0, 1000))
@settings(max_examples=10)
def test_networks_depend_on_seed_and_number_alone(order, seed):
    first, again = FairCycle(SPACE, None, seed), FairCycle(SPACE, None, seed)
    expected = {n: first.network(n) for n in range(0, 120, 7)}
    np.random.seed(seed)
    assert {n: again.network(n) for n in order} == expected
