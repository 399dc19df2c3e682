"""The pictures are real PNG files, whatever there is to draw."""

import numpy as np
import pytest
from PIL import Image
from report_data import EVALUATIONS, FRONT, RECORDS, TWO, evaluation

from llmnas.report.plots import curves_png, front_png, study_png
from llmnas.report.series import VERMILION

ONE, THREE = {"val_loss": "min"}, {**TWO, "latency_ms": "min"}


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def has_colour(image, colour):
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(image - wanted).max(axis=-1) < 8).sum() > 50


def test_front_picture_has_its_size_and_shows_the_front(tmp_path):
    front_png(tmp_path / "front.png", EVALUATIONS, FRONT, TWO)
    image = pixels(tmp_path / "front.png")
    assert image.shape == (660, 960, 3)
    assert has_colour(image, VERMILION)
    assert [p.name for p in tmp_path.iterdir()] == ["front.png"]


def test_same_data_gives_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        front_png(tmp_path / name, EVALUATIONS, FRONT, TWO)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(("objectives", "width"), [(ONE, 960), (THREE, 1920)])
def test_one_panel_for_each_further_objective(tmp_path, objectives, width):
    given = [evaluation(i, val_loss=5.0, params=1e6 * i, latency_ms=2.0) for i in range(3)]
    front_png(tmp_path / "front.png", given, given[:1], objectives)
    assert pixels(tmp_path / "front.png").shape[1] == width


def test_nothing_to_draw_is_still_a_picture(tmp_path):
    front_png(tmp_path / "front.png", [], [], TWO)
    curves_png(tmp_path / "curves.png", [])
    assert pixels(tmp_path / "front.png").shape == pixels(tmp_path / "curves.png").shape


def test_curves_picture_draws_something(tmp_path):
    curves_png(tmp_path / "curves.png", RECORDS)
    curves_png(tmp_path / "empty.png", [])
    assert (pixels(tmp_path / "curves.png") != pixels(tmp_path / "empty.png")).any()


def test_study_picture_shows_the_found_network_and_every_seed(tmp_path):
    correlation = {
        "supernet_loss": [3.0, 3.1, 3.2],
        "stand_alone_loss": [[3.4, 3.6, 3.5], [3.5, 3.6, 3.7]],
        "agreement": {"supernet": {"tau": 0.33}},
    }
    runs = {name: [{"perplexity": 20.0 + i} for i in range(3)] for name in ("qwen3", "$llama3")}
    study_png(tmp_path / "without.png", correlation, {"runs": runs})
    study_png(tmp_path / "with.png", correlation, {"runs": {**runs, "found": [{"perplexity": 19.0}] * 2}})
    assert pixels(tmp_path / "with.png").shape == (660, 1920, 3)
    assert has_colour(pixels(tmp_path / "with.png"), VERMILION)
    assert not has_colour(pixels(tmp_path / "without.png"), VERMILION)
    assert (tmp_path / "with.png").stat().st_size < 150_000


def test_a_name_that_looks_like_a_formula_is_only_a_name(tmp_path):
    name = r"$\frac{loss$"
    front_png(tmp_path / "front.png", [evaluation(0, **{name: 1.0, "params": 2.0})], [], {name: "min", "params": "min"})
    curves_png(tmp_path / "curves.png", [{"stage": "s", "step": 1, name: 1.0}])
    assert pixels(tmp_path / "front.png").size
    assert pixels(tmp_path / "curves.png").size
