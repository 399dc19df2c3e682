"""What the page draws from: the numbers, column by column."""

import itertools
import json

import numpy as np
import pytest
from report_data import CORRELATION, EVALUATIONS, FRONT, LADDER, TWO, evaluation, findings

from llmnas.report.findings import described, hypervolume_curve, packed
from llmnas.space import Architecture, LayerSpec


def unpacked(columns, i):
    layers = [None if at < 0 else columns["specs"][at] for at in columns["layers"][i]]
    return Architecture.from_dict({"hidden_size": columns["hidden_size"][i], "layers": layers})


def test_every_architecture_comes_back_and_equal_layers_are_stored_once():
    columns = json.loads(json.dumps(packed(EVALUATIONS), allow_nan=False))
    assert [unpacked(columns, i) for i in range(10)] == [e.arch for e in EVALUATIONS]
    assert len(columns["specs"]) == len({spec for e in EVALUATIONS for _, spec in e.arch.kept})
    assert columns["metrics"]["params"] == [e.metrics["params"] for e in EVALUATIONS]


def test_news_are_what_comes_after():
    new = packed(EVALUATIONS, 7)
    assert (new["after"], new["total"], new["index"]) == (7, 10, [7, 8, 9])
    assert new["last"] == EVALUATIONS[-1].arch.id
    assert [unpacked(new, i) for i in range(3)] == [e.arch for e in EVALUATIONS[7:]]


def test_failed_evaluations_and_missing_metrics():
    given = [evaluation(0, a=1.0), evaluation(1, failure="b is nan"), evaluation(2, a=2.0, b=0.1234567891234)]
    columns = packed(given)
    assert columns["total"] == 3
    assert columns["index"] == [0, 2]
    assert columns["metrics"] == {"a": [1, 2], "b": [None, 0.123456789]}


def test_large_whole_numbers_are_exact():
    assert packed([evaluation(0, params=123_456_789_012.0)])["metrics"] == {"params": [123_456_789_012]}


def test_fields_that_make_no_difference_are_named():
    specs = (LayerSpec(2, 2, 8, 64), LayerSpec(2, 2, 8, 64, mixer="none", experts=2, top_k=2))
    given = [evaluation(0, val_loss=1.0)]
    given = [type(given[0])(Architecture(32, specs), {"val_loss": 1.0})]
    assert packed(given)["unused"] == [["top_k", "shared_experts"], ["kv_heads", "queries_per_group", "head_dim"]]


def test_description_is_plain_json_whatever_the_numbers():
    found = described(findings(correlation=CORRELATION, ladder=LADDER))
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again["front"] == [e.index for e in FRONT]
    assert again["correlation"]["agreement"]["params_only"]["tau"] is None
    assert again["ladder"] == LADDER
    assert {curve["label"] for curve in again["curves"]} >= {"train loss", "val loss smallest"}


def test_points_outside_the_constraints_are_named():
    found = described(findings(constraints={"params": [1200, None]}))
    assert found["outside"] == [0, 1]
    assert 0 not in found["front"]


def area(points, reference):
    """The union of boxes by counting unit cells of the finest grid that the points make."""
    xs = sorted({p[0] for p in points} | {reference[0]})
    ys = sorted({p[1] for p in points} | {reference[1]})
    total = 0.0
    for x0, x1 in itertools.pairwise(xs):
        for y0, y1 in itertools.pairwise(ys):
            if any(p[0] <= x0 and p[1] <= y0 for p in points):
                total += (x1 - x0) * (y1 - y0)
    return total


@pytest.mark.parametrize("way", ["min", "max"])
def test_hypervolume_curve_is_the_area_of_the_boxes(way):
    rng = np.random.default_rng(5)
    sign = 1 if way == "min" else -1
    raw = rng.uniform(1, 9, (30, 2))
    given = [evaluation(i, a=float(x), b=sign * float(y)) for i, (x, y) in enumerate(raw)]
    given[4] = evaluation(4, failure="a is nan")
    good = [raw[i] for i in range(30) if i != 4]
    worst, best = np.max(good, axis=0), np.min(good, axis=0)
    curve = hypervolume_curve(given, {"a": "min", "b": way}, {})
    assert curve["evaluations"] == list(range(1, 31))
    box = np.prod(worst - best)
    for count, share in zip(curve["evaluations"], curve["share"], strict=True):
        seen = [tuple(raw[i]) for i in range(count) if i != 4]
        assert share == pytest.approx(area(seen, tuple(worst)) / box, rel=1e-9, abs=1e-12)


def test_hypervolume_of_one_objective_is_the_best_so_far():
    given = [evaluation(i, val_loss=v) for i, v in enumerate([3.0, 5.0, 2.0, 1.0])]
    assert hypervolume_curve(given, {"val_loss": "min"}, {})["share"] == pytest.approx([0.5, 0.5, 0.75, 1.0])


def test_no_box_no_curve():
    for given in ([], EVALUATIONS[:1], [evaluation(i, val_loss=1.0, params=float(i)) for i in range(3)]):
        assert hypervolume_curve(given, TWO, {})["share"] == []


def test_long_searches_have_at_most_200_steps():
    given = [evaluation(0, val_loss=float(i % 7), params=float(i % 11)) for i in range(1000)]
    curve = hypervolume_curve(given, TWO, {})
    assert len(curve["evaluations"]) == 200
    assert curve["evaluations"][-1] == 1000
    assert curve["share"] == sorted(curve["share"])
