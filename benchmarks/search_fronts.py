"""Fronts that strategies found on a predictor of a table, evaluated again on the supernet that the table is of.

    llmnas compare search_configs/search_table.yaml --run-dir runs/compare \\
        --table benchmarks/results/search_table.csv.gz
    python benchmarks/search_fronts.py runs/search_table runs/compare --json benchmarks/results/search_fronts.json

A search finds the errors of a predictor, so what `compare` says of it is checked here: the front of every strategy and
seed after so many evaluations, and that of the long random search, by predicted and by real losses. A run folder
without a supernet gets one, trained as the table's was; rows of the table are measured again first, and a supernet
that gives other losses is refused (benchmarks/search_table.py makes a new table). What was measured is kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmnas.archive import read_archive
from llmnas.config import load_config
from llmnas.files import read_json, write_json
from llmnas.pareto import Evaluation, Objectives, front, hypervolume
from llmnas.pipeline.context import Context
from llmnas.pipeline.stores import Evaluate, remembered, store_of
from llmnas.pipeline.table import read_table
from llmnas.pipeline.train import train_supernet
from llmnas.runs import RunFolder
from llmnas.tracking import Tracker

ROOT = Path(__file__).parents[1]
LOSS = "val_loss"
ROWS, TOLERANCE = 20, 1e-4
"""So many rows of the table must have their losses, in nats, to within this."""


def require_table(evaluate: Evaluate, rows: Sequence[Evaluation]) -> float:
    """Measure some rows again, evenly spread, and return the greatest difference in nats.

    Raises:
        SystemExit: it is too great: the supernet is not the one that the table is of.
    """
    some = [rows[i] for i in np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).round().astype(int)]
    found = evaluate([e.arch for e in some])
    worst = max(abs(new[LOSS] - e.metrics[LOSS]) for new, e in zip(found, some, strict=True))
    if worst > TOLERANCE:
        raise SystemExit(f"not the supernet of the table: a loss differs by {worst:.2g} nats; make a new table with it")
    return worst


def measured_again(
    found: Sequence[Evaluation], evaluate: Evaluate, objectives: Objectives, reference: dict[str, float]
) -> dict[str, Any]:
    """The front of some evaluations: hypervolumes by predicted and by real losses, and how far these are apart."""
    predicted = front(found, objectives)
    losses = [row[LOSS] for row in evaluate([e.arch for e in predicted])]
    real = [Evaluation(e.arch, {**e.metrics, LOSS: loss}) for e, loss in zip(predicted, losses, strict=True)]
    errors = np.array([e.metrics[LOSS] for e in predicted]) - losses
    return {
        "networks": len(predicted),
        "predicted_hypervolume": hypervolume(predicted, objectives, reference),
        "real_hypervolume": hypervolume(real, objectives, reference),
        "mean_error": float(errors.mean()),
        "mean_absolute_error": float(np.abs(errors).mean()),
    }


def check(evaluate: Evaluate, compared: Path, at: Sequence[int], extracted: Sequence[Path] = ()) -> dict[str, Any]:
    """Every strategy and seed of a comparison after each number of evaluations, against the long random search.

    Args:
        extracted: stores of `llmnas extract` on this supernet: what all their evaluations together reach.
    """
    result = read_json(compared / "compare" / "result.json")

    def run(strategy: str, seed: int) -> tuple[Objectives, list[Evaluation]]:
        objectives, _, evaluations = read_archive(compared / "compare" / f"{strategy}-seed{seed}.sqlite")
        return objectives, evaluations

    seeds = {name: len(curve["seeds"]) for name, curve in result["strategies"].items()}
    objectives, long = run("random", max(seeds.values()))
    reference = result["reference"]
    yardstick = measured_again(long, evaluate, objectives, reference)
    rows = []
    for name, count in seeds.items():
        for seed in range(count):
            _, evaluations = run(name, seed)
            for n in (n for n in at if n <= len(evaluations)):
                row = measured_again(evaluations[:n], evaluate, objectives, reference)
                for by in ("predicted", "real"):
                    row[f"{by}_ratio"] = row[f"{by}_hypervolume"] / yardstick[f"{by}_hypervolume"]
                rows.append({"strategy": name, "seed": seed, "evaluations": n, **row})
        print(f"{name}: {count} seeds", flush=True)
    stores = []
    for path in extracted:
        _, _, evaluations = read_archive(path)
        volume = hypervolume(front(evaluations, objectives), objectives, reference)
        ratio = volume / yardstick["real_hypervolume"]
        stores.append({"evaluations": len(evaluations), "real_hypervolume": volume, "real_ratio": ratio})
        print(f"{path}: {len(evaluations):,} evaluations, {ratio:.4f} of the random ones", flush=True)
    return {
        "yardstick": {"evaluations": len(long), **yardstick}, "reference": reference, "fronts": rows, "stores": stores,
    }  # fmt: skip


def table(found: dict[str, Any]) -> list[str]:
    """Markdown: a row a strategy and number of evaluations, the ratios as ranges over seeds."""
    lines = [
        f"| strategy | evaluations | hypervolume / that of {found['yardstick']['evaluations']:,} random ones "
        "| the same by real losses | error of the loss, mean absolute (mean) |",
        "|---|---|---|---|---|",
    ]
    for name, n in dict.fromkeys((row["strategy"], row["evaluations"]) for row in found["fronts"]):
        rows = [row for row in found["fronts"] if (row["strategy"], row["evaluations"]) == (name, n)]
        cells = []
        for by in ("predicted", "real"):
            ratios = [row[f"{by}_ratio"] for row in rows]
            cells.append(f"{np.mean(ratios):.4f} ({min(ratios):.4f} to {max(ratios):.4f})")
        far, mean = (np.mean([row[key] for row in rows]) for key in ("mean_absolute_error", "mean_error"))
        lines.append(f"| `{name}` | {n:,} | {' | '.join(cells)} | {far:.4f} ({mean:+.4f}) |")
    return lines


def main() -> None:
    """Train what is missing, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run folder of the supernet")
    parser.add_argument("compared", type=Path, help="the run folder of llmnas compare")
    parser.add_argument("--config", type=Path, default=ROOT / "search_configs" / "search_table.yaml")
    parser.add_argument("--table", type=Path, default=ROOT / "benchmarks" / "results" / "search_table.csv.gz")
    parser.add_argument("--at", type=int, nargs="+", default=[200, 1000], help="numbers of evaluations")
    parser.add_argument("--extracted", type=Path, nargs="*", default=[], help="stores of llmnas extract on that run")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    config, run = load_config(args.config, []), RunFolder(args.run)
    with Tracker(run.path, "off", config.tracking.project, {}) as tracker:
        context = Context(config, run, tracker)
        context.claim()
        train_supernet(context, prepare_first=True)
        store = store_of(context, run.result("fronts").with_name("evaluations.sqlite"), {LOSS: "min"})
        evaluate = remembered(store, context.evaluator())
        worst = require_table(evaluate, read_table(args.table, config.space))
        found = {"table_error": worst, **check(evaluate, args.compared, args.at, args.extracted)}
        store.close()
    if args.json:
        write_json(args.json, found)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
