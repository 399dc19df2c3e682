"""Limits that cannot be met are named; bands of parameters cover the range of a budget once."""

import itertools
import math

import numpy as np
import pytest
from cost_spaces import ALL_LIMITS, WIDE
from hypothesis import given, settings
from hypothesis import strategies as st

from llmnas.cost import COSTS, Budget, BudgetSampler, bands, costs, count_params
from llmnas.errors import UserError
from llmnas.space import SearchSpace


def seeded():
    return np.random.default_rng(0)


@pytest.mark.parametrize("name", COSTS)
def test_a_limit_beyond_the_space_is_named_with_what_is_there(name):
    least, most = (costs(arch, WIDE.base)[name] for arch in (WIDE.smallest(), WIDE.largest()))
    with pytest.raises(UserError, match=rf"^budget: max_{name} = .* but the smallest architecture has {least:,.0f}$"):
        BudgetSampler(WIDE, Budget(**{f"max_{name}": least - 1}))
    with pytest.raises(UserError, match=rf"^budget: min_{name} = .* but the largest architecture has {most:,.0f}$"):
        BudgetSampler(WIDE, Budget(**{f"min_{name}": most + 1}))
    assert BudgetSampler(WIDE, Budget(**{f"max_{name}": least})).sample(seeded()).depth == 3
    assert BudgetSampler(WIDE, Budget(**{f"min_{name}": most})).sample(seeded()) == WIDE.largest()


def test_limits_that_contradict_each_other_are_named():
    space = SearchSpace.from_dict({**WIDE.model_dump(), "layers": 2, "depth": [1, 2]})
    most = costs(space.largest(), space.base)["params"]
    least = costs(space.smallest(), space.base)["flops_per_token"]
    budget = Budget(min_params=int(most * 0.9), max_flops_per_token=least * 1.2)
    with pytest.raises(UserError, match=r"params.*flops_per_token") as error:
        BudgetSampler(space, budget).sample(seeded())
    assert "\n" not in str(error.value)


def test_a_gap_between_two_possible_values_is_reported():
    space = SearchSpace.from_dict(
        {**WIDE.model_dump(), "hidden_size": 32, "layers": 2, "depth": 2, "queries_per_group": 1}
    )
    gap = costs(space.smallest(), space.base)["params"] + 1  # every size adds a multiple of the hidden size
    with pytest.raises(UserError, match=rf"{gap:,} <= params <= {gap:,}"):
        BudgetSampler(space, Budget(min_params=gap, max_params=gap)).sample(seeded())


@given(st.integers(1, 12), st.sampled_from([None, Budget(max_params=150_000), ALL_LIMITS]))
@settings(max_examples=20)
def test_bands_cover_the_range_once_and_keep_the_other_limits(count, budget):
    found = bands(WIDE, budget, count)
    budget = budget or Budget()
    assert len(found) == count
    low = max(count_params(WIDE.smallest(), WIDE.base).total, budget.min_params or 0)
    high = min(count_params(WIDE.largest(), WIDE.base).total, budget.max_params or math.inf)
    assert (found[0].min_params, found[-1].max_params) == (low, high)
    for left, right in itertools.pairwise(found):
        assert 0 <= left.max_params - right.min_params <= 1
    widths = [band.max_params - band.min_params for band in found]
    assert max(widths) - min(widths) <= 2
    for band in found:
        assert band.max_flops_per_token == budget.max_flops_per_token
        assert band.max_memory_bytes == budget.max_memory_bytes
        assert band.workload == budget.workload


def test_every_band_can_be_sampled():
    for band in bands(WIDE, None, 6):
        assert all(band.admits(WIDE.base, arch) for arch in BudgetSampler(WIDE, band).sample_many(seeded(), 10))


@pytest.mark.parametrize("budget", [Budget(max_params=10), Budget(min_params=10**9)])
def test_bands_of_an_unreachable_budget_are_a_user_error(budget):
    with pytest.raises(UserError, match="_params"):
        bands(WIDE, budget, 3)
