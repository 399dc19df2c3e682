"""Curves against hypervolumes computed again, the paired test, and a surrogate of a table."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import moocore
import numpy as np
import pytest
from PIL import Image
from scipy.stats import wilcoxon
from toy_problem import REFERENCE, SPACE, TWO, measure, params, val_loss

from llmnas.archive import Archive
from llmnas.config import Config, load_config
from llmnas.config.sections import HalvingConfig
from llmnas.cost import count_params
from llmnas.errors import UserError
from llmnas.pipeline.compare import compare_strategies, strategies_table
from llmnas.pipeline.context import Context
from llmnas.pipeline.stores import remembered
from llmnas.pipeline.table import read_table, write_table
from llmnas.runs import RunFolder
from llmnas.search import search
from llmnas.search.compare import checkpoints, common_reference, compare
from llmnas.space import Architecture, cardinalities
from llmnas.tracking import Tracker


def run(strategy: str, seed: int) -> Archive:
    return search(SPACE, measure, strategy, TWO, evaluations=60, seed=seed)


def test_a_curve_is_the_hypervolume_of_the_first_evaluations():
    found = compare(run, ["random", "local"], range(3), 60, REFERENCE)
    reference = [REFERENCE[name] for name in sorted(TWO)]
    points = {
        (name, seed): np.array([[e.metrics[m] for m in sorted(TWO)] for e in run(name, seed).evaluations])
        for name in ("random", "local")
        for seed in range(3)
    }
    best = moocore.hypervolume(np.concatenate(list(points.values())), ref=reference)
    assert found.best == pytest.approx(best)
    for name, curve in found.curves.items():
        assert 50 in curve.at
        assert curve.at[-1] == 60
        for seed, row in enumerate(curve.shares):
            expected = [moocore.hypervolume(points[name, seed][:n], ref=reference) / best for n in curve.at]
            np.testing.assert_allclose(row, expected)
        assert (np.diff(curve.shares, axis=1) >= 0).all()
        assert (curve.low <= curve.mean + 1e-12).all()
        assert (curve.mean <= curve.high + 1e-12).all()
    ends = found.curves["local"].shares[:, -1], found.curves["random"].shares[:, -1]
    assert found.curves["local"].p_random[-1] == pytest.approx(wilcoxon(*ends, alternative="greater").pvalue)
    assert found.curves["random"].p_random == [1.0] * len(found.curves["random"].at)
    json.dumps(found.to_dict(), allow_nan=False)


def test_without_a_reference_the_worst_feasible_values_are_it():
    archives = [run("random", seed) for seed in range(2)]
    bounds = {"params": 60_000}
    inside = [e for a in archives for e in a.evaluations if e.metrics["params"] <= 60_000]
    found = common_reference([a.evaluations for a in archives], TWO, bounds)
    assert found == {name: max(e.metrics[name] for e in inside) for name in TWO}
    with pytest.raises(UserError, match="met the constraints"):
        common_reference([archives[0].evaluations], TWO, {"params": 1})


def test_checkpoints_are_the_reported_ones_and_the_end():
    assert {50, 200, 1000} <= set(checkpoints(1000))
    assert checkpoints(30)[-1] == 30
    assert checkpoints(3) == [3]


@pytest.mark.parametrize(("strategies", "seeds"), [([], [0]), (["random", "random"], [0]), (["random"], [])])
def test_nothing_to_compare_is_named(strategies, seeds):
    with pytest.raises(UserError, match="each once"):
        compare(run, strategies, seeds, 20)


def test_the_store_asks_for_nothing_twice(tmp_path):
    seen: list[Architecture] = []

    def evaluate(archs: Sequence[Architecture]) -> list[dict[str, float]]:
        seen.extend(archs)
        return [m | {"val_loss": float("nan")} if m["params"] > 60_000 else m for m in measure(archs)]

    store = Archive(tmp_path / "evaluations.sqlite", TWO)
    answer = remembered(store, evaluate)
    first = search(SPACE, answer, "random", TWO, evaluations=40)
    again = search(SPACE, answer, "random", TWO, evaluations=40)
    assert [e.metrics for e in first.evaluations] == [e.metrics for e in again.evaluations]
    assert [e.failure for e in first.evaluations] == [e.failure for e in again.evaluations]
    assert any(e.failure for e in first.evaluations)
    assert len(seen) == len(set(seen)) == 40


def context(tmp_path, **compared) -> Context:
    config = Config.model_validate({
        "name": "toy", "space": SPACE.model_dump(), "train": {"steps": 1, "seq_len": 16},
        "compare": {"strategies": ["random", "local"], "seeds": 2, "evaluations": 40} | compared,
    })  # fmt: skip
    return Context(config, RunFolder(tmp_path / "run"), Tracker(tmp_path / "run", "off", "llmnas", {}))


def test_a_table_stands_for_the_supernet(tmp_path):
    search(SPACE, measure, "random", TWO, evaluations=120, archive_path=tmp_path / "table.sqlite").close()
    result = compare_strategies(context(tmp_path), tmp_path / "table.sqlite")
    assert result["rows"] == 120
    assert result["surrogate"]["val_loss"]["size"] == 24
    assert result["surrogate"]["val_loss"]["tau"] > 0.8
    assert set(result["surrogate"]) == {"val_loss"}  # parameters are counted, not predicted
    stored = json.loads((tmp_path / "run/compare/result.json").read_text())
    assert stored == result
    before = (tmp_path / "run/compare/local-seed1.sqlite").read_bytes()
    (tmp_path / "run/compare/local-seed0.sqlite").unlink()
    assert compare_strategies(context(tmp_path), tmp_path / "table.sqlite") == result  # goes on with what is there
    assert (tmp_path / "run/compare/local-seed1.sqlite").read_bytes() == before
    with Image.open(tmp_path / "run/compare/hypervolume.png") as image:
        assert (
            len(
                set(
                    image.convert("RGB").get_flattened_data()
                    if hasattr(image, "get_flattened_data")
                    else image.convert("RGB").getdata()
                )
            )
            > 50
        )
    shown = strategies_table(result)
    assert {row[0] for row in shown.rows} == {"random", "local"}
    assert "held out: val_loss tau" in shown.note


def test_a_strategy_or_options_that_do_nothing_are_refused_before_anything_is_searched(tmp_path):
    for compared, search_section, message in (
        ({"strategies": ["random", "nsga"]}, {}, "'nsga' does not exist; allowed: random"),
        ({"strategies": ["random", "nsga2"]}, {"options": {"size": 20}}, "nsga2 has no 'size'"),
        (
            {},
            {"options": {"population": 20}},
            "search.options: of nsga2, which does not take part; compare.strategies: random, local",
        ),
        ({}, {"halving": HalvingConfig(first=2)}, "search.halving: a comparison evaluates every candidate whole"),
    ):
        given = context(tmp_path, **compared)
        config = given.config
        changed = config.model_copy(update={"search": config.search.model_copy(update=search_section)})
        with pytest.raises(UserError, match=message):
            compare_strategies(replace(given, config=changed), tmp_path / "never.sqlite")


def test_a_table_of_another_space_is_refused(tmp_path):
    other = SPACE.model_copy(update={"hidden_size": (128,)})

    def evaluate(archs: Sequence[Architecture]) -> list[dict[str, float]]:
        return [{"val_loss": val_loss(a), "params": params(a)} for a in archs]

    search(other, evaluate, "random", TWO, evaluations=12, archive_path=tmp_path / "table.sqlite").close()
    with pytest.raises(UserError, match="another search space"):
        compare_strategies(context(tmp_path), tmp_path / "table.sqlite")


def test_the_committed_table_is_read_and_names_its_networks(tmp_path):
    root = Path(__file__).parents[2]
    space = load_config(root / "search_configs" / "search_table.yaml", []).space
    rows = read_table(root / "benchmarks" / "results" / "search_table.csv.gz", space)
    assert len({e.arch for e in rows}) == len(rows) == 1159
    assert all(e.metrics["params"] == count_params(e.arch, space.base).total for e in rows)


def test_a_table_outlives_a_dimension_of_one_value(tmp_path):
    rows = search(SPACE, measure, "random", TWO, evaluations=12).evaluations
    write_table(tmp_path / "table.csv.gz", SPACE, rows, list(TWO))
    found = read_table(tmp_path / "table.csv.gz", SPACE)
    assert [e.arch for e in found] == [e.arch for e in rows]
    code = gzip.decompress((tmp_path / "table.csv.gz").read_bytes()).decode().splitlines()[1].split(",")[0]
    assert len(code) == sum(n > 1 for n in cardinalities(SPACE)) < len(cardinalities(SPACE))
    longer = SPACE.model_copy(update={"layers": SPACE.layers + 1})
    with pytest.raises(UserError, match="line 2: not a table of this search space"):
        read_table(tmp_path / "table.csv.gz", longer)


@pytest.mark.parametrize("yardstick", [0, 8])
def test_the_progress_ends_at_the_number_of_searches(tmp_path, monkeypatch, yardstick):
    search(SPACE, measure, "random", TWO, evaluations=20, archive_path=tmp_path / "table.sqlite").close()
    given = context(tmp_path, evaluations=8, yardstick=yardstick)
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(given.tracker, "progress", lambda stage, done, total, note="": seen.append((done, total)))
    compare_strategies(given, tmp_path / "table.sqlite")
    searches = 4 + bool(yardstick)
    assert seen == [(i, searches) for i in range(searches + 1)]


def test_the_yardstick_is_one_long_random_search(tmp_path):
    search(SPACE, measure, "random", TWO, evaluations=60, archive_path=tmp_path / "table.sqlite").close()
    result = compare_strategies(context(tmp_path, yardstick=80), tmp_path / "table.sqlite")
    assert result["yardstick"]["evaluations"] == 80
    assert 0 < result["yardstick"]["share"] <= 1
    assert "80 random evaluations reach" in strategies_table(result).note
    long = run("random", 7).evaluations
    found = compare(run, ["random"], [7], 60, REFERENCE, yardstick=long)
    assert found.yardstick == (60, pytest.approx(found.curves["random"].mean[-1]))
