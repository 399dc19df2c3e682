"""The comparison is fair: equal size, equal tuning on a seed of its own, paired seeds; nothing is done twice."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats
from study_run import VALUES, changed, opened, searched

from llmnas.archive import Archive
from llmnas.config import Config
from llmnas.cost import count_params
from llmnas.errors import UserError
from llmnas.files import read_json, write_json
from llmnas.pipeline.correlate import correlate
from llmnas.pipeline.decide import contenders
from llmnas.pipeline.export import export, export_as_gguf
from llmnas.pipeline.retrain import retrain, trainings, verdict
from llmnas.pipeline.search import search_supernet
from llmnas.pipeline.tables import comparison_table, correlation_table
from llmnas.runs import RunFolder
from llmnas.space import Architecture

SEEDS, GRID, DRAWS = 2, [0.001, 0.01], 3


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(context, result) of a finished comparison."""
    folder = tmp_path_factory.mktemp("study")
    context = searched(folder / "run", folder / "corpus")
    return context, retrain(context)


def best(runs):
    return min(runs, key=lambda r: r["val_loss"])


def test_every_network_gets_the_same_grid_on_a_seed_outside_of_the_comparison(done):
    _, result = done
    assert list(result["lr_grid"]) == list(result["runs"]) == ["found", "qwen3", "random"]
    for name, tried in result["lr_grid"].items():
        assert [r["lr"] for r in tried] == GRID
        assert {r["seed"] for r in tried} == {SEEDS}
        assert {r["id"] for r in tried} == {r["id"] for r in result["runs"][name]}
        # the rest of the comparison runs at the rate that won, on every paired seed once
        assert {r["lr"] for r in result["runs"][name]} == {best(tried)["lr"]}
        assert [r["seed"] for r in result["runs"][name]] == list(range(SEEDS))


def test_all_networks_have_the_found_size_and_the_same_tokens(done):
    context, result = done
    size = result["runs"]["found"][0]["params"]
    rows = [r for runs in result["runs"].values() for r in runs] + result["random"]
    for row in rows:
        assert 0.98 * size <= row["params"] <= size
        assert (
            count_params(Architecture.from_dict(row["architecture"]), context.config.space.base).total == row["params"]
        )
    assert {row["tokens"] for row in rows} == {3 * 2 * 16}


def test_the_found_one_is_the_decision_of_the_search(done):
    context, result = done
    archive = Archive.load(context.run.evaluations)
    assert result["found"] == read_json(context.run.decision)["chosen"]
    assert result["found"] in {e.arch.id for e in contenders(archive)}
    archive.close()


def test_random_search_trains_different_members_and_its_best_is_compared(done):
    context, result = done
    drawn = result["random"]
    assert len({r["id"] for r in drawn} | {result["found"]}) == DRAWS + 1
    assert all(context.config.space.contains(Architecture.from_dict(r["architecture"])) for r in drawn)
    assert {r["seed"] for r in drawn} == {SEEDS}
    assert result["runs"]["random"][0]["id"] == best(drawn)["id"]


def test_differences_are_paired_by_seed(done):
    _, result = done
    for comparison in result["comparisons"]:
        names = (comparison["of"], comparison["against"])
        a, b = (np.array([r["val_loss"] for r in result["runs"][name]]) for name in names)
        expected = stats.ttest_rel(a, b).confidence_interval(0.95)
        assert comparison["difference"] == pytest.approx((a - b).mean(), abs=1e-12)
        assert (comparison["low"], comparison["high"]) == pytest.approx(tuple(expected))


def test_a_second_start_trains_nothing(done):
    context, result = done
    stored = {path: path.stat().st_mtime_ns for path in context.run.path.glob("retrain/*/result.json")}
    # found, qwen3 and random on 2 seeds and 2 rates each, and 3 draws at a third rate
    assert len(stored) == 3 * (SEEDS + len(GRID)) + DRAWS == trainings(context.config)
    assert json.dumps(retrain(context)) == json.dumps(result)
    assert {path: path.stat().st_mtime_ns for path in stored} == stored


def test_a_draw_at_a_rate_of_the_grid_is_not_trained_again(done, tmp_path):
    """A rate that is there twice, and the draws' own rate in the grid: the plan counts what is trained."""
    context, _ = done
    shutil.copytree(context.run.path, tmp_path / "run", ignore=shutil.ignore_patterns("retrain"))
    values = json.loads(context.config.model_dump_json())
    values["retrain"] |= {"lr_grid": [0.003, 0.002, 0.003], "seeds": 3, "train": {"steps": 1, "lr": 0.002}}
    other = replace(context, config=Config.model_validate(values), run=RunFolder(tmp_path / "run"))
    retrain(other)
    trained = len(list((tmp_path / "run" / "retrain").glob("*/result.json")))
    assert trained == 3 * (3 + 2) + DRAWS - 1 == trainings(other.config)


def test_weights_of_a_comparison_that_was_not_finished_are_never_exported(done, tmp_path, monkeypatch):
    """Stopped between the first network's weights and their result, or after all trainings: the numbers are older."""
    context, _ = done
    shutil.copytree(context.run.path, tmp_path / "run")
    values = json.loads(context.config.model_dump_json())
    values["retrain"] |= {"train": {"steps": 2}, "lr_grid": [], "random_baseline": 0}
    other = replace(context, config=Config.model_validate(values), run=RunFolder(tmp_path / "run"))
    before = read_json(other.run.result("retrain"))
    del before["runs"]["found"][1:]  # the exported one is the first that is trained
    write_json(other.run.result("retrain"), before)
    assert export(other).folder.is_dir()

    def stop(*_):
        raise KeyboardInterrupt

    for moment in ("stand_alone.write_json", "retrain.paired_difference"):
        with monkeypatch.context() as patched:
            patched.setattr(f"llmnas.pipeline.{moment}", stop)
            with pytest.raises(KeyboardInterrupt):
                retrain(other)
        for verb in (export, export_as_gguf):
            with pytest.raises(UserError, match=r"seed0: not the weights of .*; run `llmnas retrain --resume`"):
                verb(other, force=True)
    rows = retrain(other)["runs"]["found"]
    export(other, force=True)
    assert other.run.recorded("export")["of"] == best(rows)["identity"] != before["runs"]["found"][0]["identity"]


def test_table_names_every_network_and_verdict(done):
    _, result = done
    table = comparison_table(result)
    assert [row[0] for row in table.rows] == ["found", "qwen3", "random"]
    assert all(verdict(c) in table.note for c in result["comparisons"])


def test_more_random_draws_than_there_are_architectures(done):
    context, _ = done
    greedy = context.config.retrain.model_copy(update={"random_baseline": 100})
    config = context.config.model_copy(update={"retrain": greedy})
    with pytest.raises(UserError, match=r"retrain\.random_baseline = 100, but only \d+ other"):
        retrain(replace(context, config=config))


def test_costs_are_noted_and_a_repeated_search_keeps_its_own(done):
    context, result = done
    assert all(r["cpu_seconds"] > 0 for runs in result["runs"].values() for r in runs)
    spent = context.run.recorded("search")["cpu_seconds"]
    assert spent > 0
    assert context.run.recorded("train")["cpu_seconds"] > 0
    search_supernet(context).close()
    assert context.run.recorded("search")["cpu_seconds"] == spent
    assert context.run.recorded("export") == {}


def test_correlation_compares_the_cost_and_outlives_another_supernet(done, tmp_path):
    context, _ = done
    first = correlate(context)
    cost = first["cpu_seconds"]
    assert cost["supernet"] == context.run.recorded("train")["cpu_seconds"]
    assert len(cost["stand_alone"]) == 3 * 2
    assert len(cost["adapt"]) == 3
    assert min(cost["stand_alone"]) > 0
    assert "stand-alone trainings" in correlation_table(first).note
    assert first["conflicts"]["windows"] == 16
    assert [-1 <= pair["cosine"] <= 1 for pair in first["conflicts"]["pairs"]] == 3 * [True]
    assert all(0 <= pair["opposed"] <= 1 and pair["shared"] > 1000 for pair in first["conflicts"]["pairs"])

    # another supernet: its scores are new, the networks trained alone are the same
    values = json.loads(context.config.model_dump_json())
    values["train"]["steps"] = 5
    other = opened(tmp_path / "other", values)
    for name in ("correlate", "data", "supernet"):
        shutil.copytree(context.run.path / name, other.run.path / name)
    stored = {path: path.stat().st_mtime_ns for path in other.run.path.glob("correlate/*-seed[01]/result.json")}
    stored = {path: time for path, time in stored.items() if "adapted" not in path.parent.name}
    assert correlate(other)["stand_alone_loss"] == first["stand_alone_loss"]
    assert {path: path.stat().st_mtime_ns for path in stored} == stored

    # other validation windows are another measurement
    values["search"]["windows"] = 4
    assert correlate(opened(tmp_path / "other", values))["stand_alone_loss"] != first["stand_alone_loss"]


def test_adapted_networks_start_from_the_supernet(done):
    """One step at a vanishing learning rate leaves the supernet's own loss."""
    context, _ = done
    still = context.config.correlate.model_copy(update={"adapt": {"steps": 1, "lr": 1e-9}, "gradient_windows": 0})
    result = correlate(replace(context, config=context.config.model_copy(update={"correlate": still})))
    assert result["adapted_loss"] == pytest.approx(result["supernet_loss"], abs=1e-4)
    assert result["conflicts"] == {}
    assert "conflict" not in correlation_table(result).note
    assert result["agreement"]["supernet_adapted"] == result["agreement"]["supernet"]


def test_verdict_says_what_the_interval_allows():
    better = {"against": "x", "difference": -0.05, "low": -0.06, "high": -0.04, "clear": True}
    assert verdict(better) == "-0.0500 nats (-4.9% perplexity) [-0.0600, -0.0400]: the found model is better"
    assert "the found model is WORSE" in verdict({**better, "difference": 0.05, "low": 0.04, "high": 0.06})
    assert verdict({**better, "high": 0.04, "clear": False}).endswith("within seed noise")
    assert "no statement about noise" in verdict({"against": "x", "difference": -0.05, "clear": False})


@pytest.mark.parametrize("wrong", [{"lr_grid": [0.0]}, {"lr_grid": [-0.1]}, {"random_baseline": -1}])
def test_impossible_comparisons_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Config.model_validate(changed(retrain=wrong))
    assert Config.model_validate(VALUES)
