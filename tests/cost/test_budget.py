"""Limits are inclusive, named, and impossible ones cannot be written down."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import spaces_with_members

from llmnas.cost import COSTS, Budget, Workload, costs, count_params, memory, prefill_flops_per_token

LONG = Workload(batch=2, context=100, bytes_per_value=4)


@given(spaces_with_members(), st.sampled_from([Workload(), LONG]))
def test_costs_are_the_closed_forms_at_the_workload(case, workload):
    space, arch = case
    found = costs(arch, space.base, workload)
    assert found == {
        "params": count_params(arch, space.base).total,
        "active_params": count_params(arch, space.base).active,
        "flops_per_token": prefill_flops_per_token(arch, space.base, workload.context or space.base.max_seq),
        "memory_bytes": memory(arch, space.base, workload).total,
    }
    assert set(COSTS) == set(found)


@given(spaces_with_members(), st.sampled_from(COSTS))
def test_limits_are_inclusive(case, name):
    space, arch = case
    cost = costs(arch, space.base, LONG)[name]
    step = 1 if name != "flops_per_token" else 0.5
    for limit, admitted in (
        ({f"max_{name}": cost}, True),
        ({f"min_{name}": cost}, True),
        ({f"min_{name}": cost, f"max_{name}": cost}, True),
        ({f"max_{name}": cost - step}, False),
        ({f"min_{name}": cost + step}, False),
    ):
        budget = Budget(**limit, workload=LONG)
        assert budget.admits(space.base, arch) == admitted
        assert budget.broken(space.base, arch) == ([] if admitted else list(limit))


@given(spaces_with_members())
def test_every_broken_limit_is_named(case):
    space, arch = case
    budget = Budget(max_params=1, min_flops_per_token=1e18, max_memory_bytes=1)
    assert set(budget.broken(space.base, arch)) == {"max_params", "min_flops_per_token", "max_memory_bytes"}


def test_no_limit_admits_everything():
    assert Budget().limits() == {}
    assert Budget(max_params=5).limits() == {"params": (-math.inf, 5)}
    assert Budget(min_params=5).limits() == {"params": (5, math.inf)}


@pytest.mark.parametrize("name", COSTS)
def test_least_above_most_is_refused(name):
    with pytest.raises(ValueError, match=rf"min_{name} 20 is above max_{name} 10"):
        Budget(**{f"min_{name}": 20, f"max_{name}": 10})


@pytest.mark.parametrize("side", ["min", "max"])
@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("limit", [0, -1, math.nan, math.inf, 10**309, "3", True])
def test_limits_that_are_no_positive_number_are_refused(side, name, limit):
    with pytest.raises(ValueError, match=rf"{side}_{name} must be a positive, finite number, got"):
        Budget(**{f"{side}_{name}": limit})


@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"batch": -1}, {"context": 0}, {"context": -5}, {"bytes_per_value": 0}]
)
def test_impossible_workloads_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Workload(**wrong)
