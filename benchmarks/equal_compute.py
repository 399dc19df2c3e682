"""Equal compute: our supernet against whittle 0.6, same space, corpus, tokenizer, batch and time.

    llmnas prepare search_configs/dense_1m.yaml --run-dir runs/dense_1m
    python benchmarks/equal_compute.py --data runs/dense_1m/data --run-dir runs/equal_compute --whittle-python PYTHON

PYTHON is that of an environment of its own: `pip install torch==2.13.0`, then with that pin as a constraint
`pip install whittle==0.6.0`, then `pip uninstall torchvision`. Each strategy of each side runs for `--grid-seconds` at
every learning rate with every beta2 of AdamW; then the best of each side runs for `--final-seconds`, `--seeds` times.
Every run is a process of its own and leaves a JSON in the run folder: runs that are there are not repeated, so an
interrupted comparison goes on. At most `--processes` runs go side by side, the two sides in turn.

`--clock wall` (default) measures wall time and means something on an idle machine only. `--clock cpu` gives every run
the same CPU time of its own process, with one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, product, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau

from llmnas.files import write_json

HERE = Path(__file__).parent
SPACE = {
    "vocab_size": 4096,
    "hidden_size": [64, 96, 128],
    "depth": [2, 3, 4],
    "heads": [2, 4],
    "ffn_size": [128, 256, 384],
    "head_dim": 32,
    "queries_per_group": 2,
    "tied": True,
}
CHOICES = ("hidden_size", "depth", "heads", "ffn_size")
NETWORKS = 12
WHITTLE = ("random", "ats", "sandwich")


@dataclass(frozen=True)
class Run:
    """One training run of one side."""

    side: str
    strategy: str
    lr: float
    beta2: float
    seconds: float
    seed: int = 0

    def json(self, folder: Path) -> Path:
        """Where its result lies."""
        strategy = f"{self.side}-{self.strategy.replace(':', '')}"
        return folder / f"{strategy}-lr{self.lr:g}-beta{self.beta2:g}-{self.seconds:g}s-seed{self.seed}.json"

    def result(self, folder: Path) -> dict[str, Any]:
        """What it wrote."""
        found: dict[str, Any] = json.loads(self.json(folder).read_text(encoding="utf-8"))
        return found


def networks(count: int, seed: int) -> list[dict[str, int]]:
    """Distinct random members of the space."""
    everything = [dict(zip(CHOICES, sizes, strict=True)) for sizes in product(*(SPACE[name] for name in CHOICES))]
    chosen = np.random.default_rng(seed).choice(len(everything), size=count, replace=False)
    return [everything[i] for i in chosen]


def execute(run: Run, args: argparse.Namespace) -> None:
    """Train and measure in a process of its own, unless the result is there."""
    target = run.json(args.run_dir)
    if target.exists():
        return
    script, python = ("peer_whittle.py", args.whittle_python) if run.side == "whittle" else ("equal_ours.py", None)
    command = [str(python or sys.executable), str(HERE / script)]
    options = {
        "train": args.data / "train.bin",
        "validation": args.data / "validation.bin",
        "architectures": args.run_dir / "networks.json",
        "space": args.run_dir / "space.json",
        "strategy": run.strategy,
        "lr": run.lr,
        "beta2": run.beta2,
        "seconds": run.seconds,
        "seed": run.seed,
        "clock": args.clock,
        "threads": args.threads,
        "val-windows": args.val_windows,
        "json": target,
    }
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "PYTHONPATH": str(HERE.parent)}
    print("start", target.stem, flush=True)
    with target.with_suffix(".log").open("w", encoding="utf-8") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=True)
    print("done ", target.stem, f"{run.result(args.run_dir)['mean_val_loss']:.4f}", flush=True)


def execute_all(runs: list[Run], args: argparse.Namespace) -> None:
    """All runs, the two sides in turn, at most `args.processes` at once."""
    sides = [[run for run in runs if run.side == side] for side in ("ours", "whittle")]
    ordered = [run for run in chain.from_iterable(zip_longest(*sides)) if run]
    with ThreadPoolExecutor(args.processes) as pool:
        list(pool.map(lambda run: execute(run, args), ordered))


def best(runs: list[Run], folder: Path) -> Run:
    """The run with the lowest mean validation loss."""
    return min(runs, key=lambda run: run.result(folder)["mean_val_loss"])


def row(run: Run, folder: Path) -> dict[str, Any]:
    """The figures of one run that a table shows."""
    found = run.result(folder)
    training = found["training"]
    return {
        "side": run.side,
        "strategy": run.strategy,
        "lr": run.lr,
        "beta2": run.beta2,
        "seed": run.seed,
        "seconds": training["clock_seconds"],
        "steps": training["steps"],
        "networks_trained": training["networks_trained"],
        "mean_val_loss": found["mean_val_loss"],
        "smallest": found["smallest"]["val_loss"],
        "largest": found["largest"]["val_loss"],
        "seconds_per_candidate": found["seconds_per_candidate"],
        "losses": [network["val_loss"] for network in found["architectures"]],
    }


def summary(grid: list[Run], final: list[Run], args: argparse.Namespace) -> dict[str, Any]:
    """Everything measured, and the difference of the two finals (ours lower: positive)."""
    rows = [row(run, args.run_dir) for run in final]
    means = {side: np.array([r["mean_val_loss"] for r in rows if r["side"] == side]) for side in SIDES}
    by_seed = means["whittle"] - means["ours"]
    losses = {side: np.mean([r["losses"] for r in rows if r["side"] == side], axis=0) for side in SIDES}
    example = final[0].result(args.run_dir)
    return {
        "clock": args.clock,
        "threads": args.threads,
        "processes_side_by_side": args.processes,
        "space": SPACE,
        "networks": networks(NETWORKS, 0),
        "validation_windows": args.val_windows,
        "versions": final[-1].result(args.run_dir)["versions"] | example["versions"],
        "load_average": [run.result(args.run_dir)["load_average"] for run in final],
        "grid": [row(run, args.run_dir) for run in grid],
        "final": rows,
        "whittle_minus_ours": float(by_seed.mean()),
        "whittle_minus_ours_by_seed": by_seed.tolist(),
        "tau_between_the_sides": float(kendalltau(losses["ours"], losses["whittle"]).statistic),
    }


SIDES = ("ours", "whittle")


def show(report: dict[str, Any]) -> None:
    """Print the tables."""
    for part in ("grid", "final"):
        columns = (
            "side",
            "strategy",
            "lr",
            "beta2",
            "seed",
            "seconds",
            "steps",
            "networks_trained",
            "mean_val_loss",
            "smallest",
            "largest",
        )
        table = Table(*columns, title=f"equal compute, {part} ({report['clock']} time, threads: {report['threads']})")
        for found in report[part]:
            table.add_row(*(f"{v:.4g}" if isinstance(v := found[c], float) else str(v) for c in columns))
        Console(width=140).print(table)
    print(f"whittle - ours: {report['whittle_minus_ours']:.4f} nat a token (mean of {NETWORKS} sub-networks)")


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="equal compute against whittle 0.6")
    parser.add_argument("--data", type=Path, required=True, help="the data/ folder of `llmnas prepare`")
    parser.add_argument("--run-dir", type=Path, required=True, help="where the runs leave their results")
    parser.add_argument("--whittle-python", type=Path, required=True, help="python of whittle's environment")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "equal_compute.json")
    parser.add_argument("--grid-seconds", type=float, default=240.0)
    parser.add_argument("--final-seconds", type=float, default=900.0)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3], help="grid of learning rates")
    parser.add_argument("--beta2", type=float, nargs="+", default=[0.95, 0.99], help="grid of AdamW's second beta")
    parser.add_argument("--ours", nargs="+", default=["single:4"], help="our strategies, see equal_ours.py")
    parser.add_argument("--whittle", nargs="+", default=list(WHITTLE), choices=WHITTLE)
    parser.add_argument("--seeds", type=int, default=1, help="seeds of the finals")
    parser.add_argument("--clock", choices=("cpu", "wall"), default="wall")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processes", type=int, default=1, help="runs side by side")
    parser.add_argument("--val-windows", type=int, default=128)
    return parser


def main() -> None:
    """Grid, finals, table, JSON."""
    parser = arguments()
    args = parser.parse_args()
    if args.clock == "cpu" and args.threads != 1:
        parser.error("--clock cpu needs --threads 1: waiting threads burn CPU time too")
    args.run_dir.mkdir(parents=True, exist_ok=True)
    write_json(args.run_dir / "space.json", SPACE)
    write_json(args.run_dir / "networks.json", networks(NETWORKS, 0))
    strategies = [("ours", name) for name in args.ours] + [("whittle", name) for name in args.whittle]
    grid = [
        Run(side, name, lr, beta2, args.grid_seconds)
        for (side, name), lr, beta2 in product(strategies, args.rates, args.beta2)
    ]
    execute_all(grid, args)
    chosen = [best([run for run in grid if run.side == side], args.run_dir) for side in SIDES]
    final = [replace(run, seconds=args.final_seconds, seed=seed) for seed in range(args.seeds) for run in chosen]
    execute_all(final, args)
    report = summary(grid, final, args)
    show(report)
    write_json(args.json, report)


if __name__ == "__main__":
    main()
