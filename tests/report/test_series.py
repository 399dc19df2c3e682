"""What is drawn, before it is drawn."""

import math

from report_data import evaluation

from llmnas.report.series import Curve, axis_label, loss_curves, panels, points, thin


def test_panels_are_the_first_objective_over_each_other_one():
    assert panels({"val_loss": "min", "params": "min", "latency_ms": "min"}) == [
        ("params", "val_loss"),
        ("latency_ms", "val_loss"),
    ]


def test_one_objective_is_drawn_over_the_evaluation_number():
    assert panels({"val_loss": "min"}) == [("evaluation", "val_loss")]
    assert points([evaluation(4, val_loss=3.0)], "evaluation", "val_loss")[0][:2] == (4.0, 3.0)


def test_points_go_from_left_to_right_and_leave_out_what_has_no_number():
    given = [
        evaluation(0, val_loss=3.0, params=9.0),
        evaluation(1, params=1.0),
        evaluation(2, val_loss=4.0, params=2.0),
    ]
    assert [p[:2] for p in points(given, "params", "val_loss")] == [(2.0, 4.0), (9.0, 3.0)]


def test_known_metrics_have_units_and_unknown_ones_keep_their_name():
    assert axis_label("val_loss") == "validation loss (nats/token)"
    assert axis_label("my_metric") == "my_metric"


def test_curves_are_the_finite_losses_sorted_by_step():
    records = [
        {"stage": "supernet", "step": 20, "train_loss": 5.0, "lr": 0.1},
        {"stage": "supernet", "step": 10, "train_loss": 6.0},
        {"stage": "supernet", "step": 30, "train_loss": math.nan},
        {"stage": "supernet", "step": 20, "val_loss_smallest": 7},
    ]
    assert loss_curves(records) == [
        Curve("train loss", [10, 20], [6.0, 5.0]),
        Curve("val loss smallest", [20], [7.0]),
    ]


def test_curves_of_several_stages_are_told_apart():
    records = [{"stage": stage, "step": 1, "train_loss": 5.0} for stage in ("supernet", "retrain")]
    assert [curve.label for curve in loss_curves(records)] == ["supernet: train loss", "retrain: train loss"]


def test_thinning_keeps_ends_and_peaks():
    values = [math.sin(i / 50) for i in range(20_000)]
    values[7777], values[9999] = 90.0, -90.0
    curve = Curve("c", list(range(20_000)), values)
    short = thin(curve, 500)
    assert len(short.steps) <= 502
    assert (short.steps[0], short.steps[-1]) == (0, 19_999)
    assert short.steps == sorted(short.steps)
    assert max(short.values) == 90.0
    assert min(short.values) == -90.0
    assert all(curve.values[step] == value for step, value in zip(short.steps, short.values, strict=True))
    assert thin(short, 600) is short
