"""Measure sub-networks of one trained supernet and write them as a small table that strategies can be compared on.

    llmnas prepare search_configs/search_table.yaml && llmnas train search_configs/search_table.yaml
    python benchmarks/search_table.py runs/search_table
    llmnas compare search_configs/search_table.yaml --table benchmarks/results/search_table.csv.gz

Half of the networks are random; the others are what `nsga2` and `local` proposed, so that the table also knows the
front. Every number is a real evaluation on the same validation windows. What was measured is kept in the run folder.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from llmnas.archive import Archive
from llmnas.config import load_config
from llmnas.pipeline.context import Context
from llmnas.pipeline.stores import remembered, store_of
from llmnas.pipeline.table import write_table
from llmnas.runs import RunFolder
from llmnas.search import search
from llmnas.tracking import Tracker

ROOT = Path(__file__).parents[1]
SHARES = {"random": 0.5, "nsga2": 0.3, "local": 0.2}


def measure(context: Context, count: int) -> Archive:
    """The store of evaluations, `count` of them where the space has as many."""
    config = context.config
    store = store_of(context, context.run.result("table").with_name("evaluations.sqlite"), {"val_loss": "min"})
    evaluate = remembered(store, context.evaluator(), keep=("params",))
    begun, held = time.process_time(), len(store)
    for strategy, share in SHARES.items():
        search(
            config.space, evaluate, strategy, dict(config.search.objectives), config.budget, {},
            round(share * count), config.seed, batch=10,
            on_progress=lambda archive, strategy=strategy: print(strategy, len(archive), len(store), flush=True)
            if len(archive) % 100 == 0 else None,
        ).close()  # fmt: skip
    print(f"{len(store) - held} evaluations in {time.process_time() - begun:.0f} CPU seconds")
    return store


def main() -> None:
    """Measure what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run folder with the trained supernet")
    parser.add_argument("--config", type=Path, default=ROOT / "search_configs" / "search_table.yaml")
    parser.add_argument("--count", type=int, default=2400)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "search_table.csv.gz")
    args = parser.parse_args()
    config, run = load_config(args.config, []), RunFolder(args.run)
    with Tracker(run.path, "off", config.tracking.project, {}) as tracker:
        context = Context(config, run, tracker)
        store = measure(context, args.count)
        write_table(args.out, config.space, store.evaluations, ("val_loss", "params"))
        store.close()
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
