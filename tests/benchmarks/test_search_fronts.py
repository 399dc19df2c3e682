"""Fronts found on a predictor of a table, measured again: against the evaluator itself, on the tiny run."""

import json
from contextlib import closing

import numpy as np
import pytest
import search_fronts
import tiny

from llmnas.archive import Archive, read_archive
from llmnas.config import load_config
from llmnas.pareto import Evaluation, front, hypervolume
from llmnas.pipeline.compare import strategies_table
from llmnas.pipeline.context import Context
from llmnas.pipeline.table import write_table
from llmnas.runs import RunFolder


@pytest.mark.full
def test_fronts_found_on_a_predictor_are_measured_again(copied, llmnas, tmp_path):
    """On the tiny run: real losses are those of the evaluator, and another supernet than the table's is refused."""
    config = load_config(copied.config, [])
    with closing(Archive.load(copied.folder / "evaluations.sqlite")) as archive:
        rows = archive.evaluations
    write_table(tmp_path / "table.csv.gz", config.space, rows, ("val_loss", "params"))
    sets = ["strategies=[random,evolution]", "seeds=2", "evaluations=6", "yardstick=8"]
    options = [word for text in sets for word in ("--set", f"compare.{text}")]
    compared = tmp_path / "compared"
    command = ["compare", copied.config, "--run-dir", compared, "--table", tmp_path / "table.csv.gz"]
    assert llmnas(*command, *options).code == 0
    evaluate = Context(config, RunFolder(copied.folder), None).evaluator()
    assert search_fronts.require_table(evaluate, rows) < 1e-6
    found = search_fronts.check(evaluate, compared, [4, 6, 1000], [copied.folder / "evaluations.sqlite"])
    assert [(row["strategy"], row["seed"], row["evaluations"]) for row in found["fronts"]] == [
        (name, seed, n) for name in ("random", "evolution") for seed in (0, 1) for n in (4, 6)
    ]
    goals, _, evaluations = read_archive(compared / "compare" / "evolution-seed1.sqlite")
    best = front(evaluations, goals)
    losses = np.array([evaluate.measure(e.arch)["val_loss"] for e in best])
    row = found["fronts"][-1]
    assert row["networks"] == len(best)
    assert row["mean_error"] == pytest.approx(np.mean([e.metrics["val_loss"] for e in best] - losses))
    real = [Evaluation(e.arch, {**e.metrics, "val_loss": loss}) for e, loss in zip(best, losses, strict=True)]
    assert row["real_hypervolume"] == pytest.approx(hypervolume(real, goals, found["reference"]))
    whole = hypervolume(rows, goals, found["reference"])
    assert found["stores"][0]["real_hypervolume"] == pytest.approx(whole)
    assert len(search_fronts.table(found)) == 2 + 4
    other = [Evaluation(e.arch, {"val_loss": e.metrics["val_loss"] + 0.01}) for e in rows]
    with pytest.raises(SystemExit, match=r"a loss differs by 0\.01 nats"):
        search_fronts.require_table(evaluate, other)


def test_the_page_shows_the_stored_numbers():
    stored = {
        name: json.loads((tiny.ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
        for name in ("strategies_table", "search_fronts")
    }
    page = (tiny.ROOT / "docs" / "search.md").read_text()
    for name, *cells in strategies_table(stored["strategies_table"]).rows:
        assert f"| `{name}` | {' | '.join(cells)} |" in page
    assert "\n".join(search_fronts.table(stored["search_fronts"])) in page
