import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmnas.errors import UserError
from llmnas.pareto import (
    Evaluation,
    all_needed,
    check_constraints,
    check_objectives,
    dominates,
    front,
    hypervolume,
    violations,
    why_empty,
)  # fmt: skip
from llmnas.space import Architecture, LayerSpec

TWO = {"loss": "min", "speed": "max"}
ARCHS = [Architecture(size, (LayerSpec(1, 1, 8, 16),)) for size in range(8, 208, 8)]
RESULTS = [{"loss": float(i % 5), "speed": float(i % 7), "other": i / 3} for i in range(len(ARCHS))]


def evaluation(*values: float, names: str = "abc", failure: str | None = None) -> Evaluation:
    return Evaluation(ARCHS[0], dict(zip(names, values, strict=False)), failure)


small = st.integers(0, 4)
directions = st.sampled_from(["min", "max"])


@st.composite
def populations(draw):
    objectives = {name: draw(directions) for name in "abc"[: draw(st.integers(1, 3))]}
    rows = draw(st.lists(st.tuples(small, small, small, st.booleans()), max_size=12))
    return [evaluation(*map(float, row[:3]), failure="nan" if row[3] else None) for row in rows], objectives


def better(a: Evaluation, b: Evaluation, objectives: dict[str, str]) -> bool:
    """The definition, written out."""
    gains = [(b.metrics[n] - a.metrics[n]) * (1 if way == "min" else -1) for n, way in objectives.items()]
    return all(gain >= 0 for gain in gains) and any(gain > 0 for gain in gains)


@given(populations())
def test_dominates_is_the_definition(case):
    evaluations, objectives = case
    for a, b in itertools.product(evaluations, repeat=2):
        if a.failure is None and b.failure is None:
            assert dominates(a, b, objectives) == better(a, b, objectives)
        else:
            assert dominates(a, b, objectives) == (a.failure is None and b.failure is not None)


@given(populations(), st.none() | st.tuples(small, small).map(sorted))
def test_front_is_what_nothing_feasible_dominates(case, bounds):
    evaluations, objectives = case
    constraints = {"c": tuple(bounds)} if bounds else {}
    feasible = [
        e for e in evaluations if e.failure is None and (bounds is None or bounds[0] <= e.metrics["c"] <= bounds[1])
    ]
    expected = [e for e in feasible if not any(better(other, e, objectives) for other in feasible)]
    found = front(evaluations, objectives, constraints)
    assert [id(e) for e in found] == [id(e) for e in expected]  # equal points all stay, in their order


@given(populations(), st.tuples(small, small, small))
def test_hypervolume_is_the_number_of_dominated_unit_cells(case, corner):
    evaluations, objectives = case
    reference = {name: float(corner[i]) for i, name in enumerate(objectives)}
    cells = set()
    for e in evaluations:
        if e.failure is None:
            ends = [sorted((e.metrics[name], reference[name])) for name in objectives]
            signs = [(reference[n] - e.metrics[n]) * (1 if way == "min" else -1) > 0 for n, way in objectives.items()]
            if all(signs):
                cells |= set(itertools.product(*(range(int(low), int(high)) for low, high in ends)))
    assert hypervolume(evaluations, objectives, reference) == pytest.approx(len(cells))


unit = st.floats(0, 1)


@settings(max_examples=50)
@given(st.lists(st.tuples(unit, unit), min_size=1, max_size=20))
def test_hypervolume_in_two_dimensions_is_the_staircase(points):
    area, ceiling = 0.0, 1.0
    for x, y in sorted(points):
        if y < ceiling:
            area += (1.0 - x) * (ceiling - y)
            ceiling = y
    evaluations = [evaluation(x, y) for x, y in points]
    assert hypervolume(evaluations, {"a": "min", "b": "min"}, {"a": 1, "b": 1}) == pytest.approx(area, abs=1e-12)


@pytest.mark.parametrize("reference", [{}, {"a": 1.0}, {"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 1.0, "b": math.nan}])
def test_a_reference_that_does_not_fit_the_objectives_is_refused(reference):
    with pytest.raises(UserError, match=r"one finite number for each of \['a', 'b'\]"):
        hypervolume([evaluation(1, 2)], {"a": "min", "b": "max"}, reference)


def test_violations_are_relative_to_the_bound():
    bounds = {"a": 4.0, "b": (2.0, None), "c": (None, 0.0)}
    assert violations({"a": 4.0, "b": 2.0, "c": 0.0}, bounds) == [0.0, 0.0, 0.0]
    assert violations({"a": 6.0, "b": 1.0, "c": 3.0}, bounds) == [0.5, 0.5, 3.0]


def test_constraints_become_intervals():
    assert check_constraints({"a": 3, "b": [1, None], "c": (1, 1)}) == {
        "a": (-math.inf, 3),
        "b": (1, math.inf),
        "c": (1, 1),
    }


@pytest.mark.parametrize(
    "bound", ["fast", "3", True, (None, "3"), None, (1, 2, 3), (2, 1), (None, None), math.nan, math.inf, {"max": 3}]
)
def test_malformed_constraints_are_refused(bound):
    with pytest.raises(UserError, match="constraints: latency"):
        check_constraints({"latency": bound})


def test_metrics_that_all_count_are_failed_by_one_that_is_not_finite():
    assert all_needed({"a": 1.0, "b": 2.0}) == {"a": 1.0, "b": 2.0}
    assert all_needed({"a": math.nan, "b": -math.inf, "c": 1.0}).reason == "a is nan, b is -inf"


def test_a_front_that_is_not_empty_needs_no_explanation():
    assert why_empty([evaluation(1, 2), evaluation(failure="a is nan")], {"b": 2}) == ""
    assert why_empty([], {}) == "Nothing was evaluated."


def test_an_empty_front_of_failures_is_explained_by_the_commonest_reason():
    reasons = ["a is nan", "RuntimeError: no memory", "RuntimeError: no memory"]
    found = why_empty([evaluation(failure=reason) for reason in reasons], {})
    assert found == "All 3 evaluations failed, 2 of them because RuntimeError: no memory."


def test_an_empty_front_outside_of_constraints_is_explained_by_the_nearest():
    outside = [evaluation(12, 1), evaluation(30, 5), evaluation(11, 0.5), evaluation(failure="a is nan")]
    assert why_empty(outside, {"a": 10, "b": (1, None)}) == (
        f"None of the 3 evaluations that succeeded (of 4) meets all constraints; nearest is {ARCHS[0].id}: "
        "a = 12 is 2 above 10."
    )
    assert why_empty(outside[2:], {"a": 10, "b": (1, None)}).endswith("a = 11 is 1 above 10, b = 0.5 is 0.5 below 1.")


@pytest.mark.parametrize("wrong", ["val_loss", ["val_loss"], ("val_loss", "params"), None, 3])
def test_objectives_and_constraints_that_are_no_mapping_are_one_line(wrong):
    with pytest.raises(UserError, match=r'objectives: .*write them as \{"val_loss": "min"\}'):
        check_objectives(wrong)
    with pytest.raises(UserError, match=r'constraints: .*write them as \{"latency_ms": 20\}'):
        check_constraints(wrong)
