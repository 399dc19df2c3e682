"""The networks of `moe_study.py` trained alone for longer, each at its best learning rate; three seeds.

    python benchmarks/moe_long.py --folder runs/moe_study --json benchmarks/results/moe_long.json

At 300 steps many runs still stand on a plateau, so their order says who leaves it first. Here every network takes the
rate that was best for it (at `--grid-steps`, half of the length if not said) on a seed that decides nothing else; the
runs compared are at that rate, paired by seed (its own split of the text, weights and order of data). Every run is
stored; the same command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleave import environment
from moe_study import MIXED, Seed, networks, paired

from llmnas.files import write_json
from llmnas.pipeline.prepare import prepare

STEPS, RATES, GRID_SEED = 1200, (8e-3, 4e-3, 16e-3), 90
RESULTS = Path(__file__).parent / "results" / "moe_long.json"


def grid(seed: Seed, steps: int, rates: Sequence[float]) -> dict[str, dict[float, float]]:
    """Validation loss of every network at every rate."""
    prepare(seed.context)
    found: dict[str, dict[float, float]] = {name: {} for name in networks(seed.config.space)}
    for lr in rates:  # rate by rate, so that what is there compares the networks
        for name, arch in networks(seed.config.space).items():
            found[name][lr] = seed.alone(name, arch, lr=lr, steps=steps)["val_loss"]
    return found


def trained(seeds: Sequence[Seed], rates: dict[str, float], steps: int) -> dict[str, list[dict[str, Any]]]:
    """Every network at its rate, seed by seed."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in rates}
    for seed in seeds:
        prepare(seed.context)
        for name, arch in networks(seed.config.space).items():
            found[name].append(seed.alone(name, arch, lr=rates[name], steps=steps))
    return found


def differences(found: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Mixtures minus the dense networks of as many active and of as many stored parameters, paired by seed."""
    (f,) = MIXED
    equal = {f"dense {f}": "active", f"dense {4 * f}": "total"}
    return {
        f"{kind} {f} - {dense} (equal {size})": paired(found[f"{kind} {f}"], found[dense])
        for kind in ("moe", "fine")
        for dense, size in equal.items()
    }


def main() -> None:
    """Run what is missing, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/moe_study"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--grid-steps", type=int)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    grid_steps = args.grid_steps or args.steps // 2
    with ExitStack() as stack:
        rates_found = grid(Seed(args.folder, GRID_SEED, stack), grid_steps, args.rates)
        rates = {name: min(losses, key=lambda lr: losses[lr]) for name, losses in rates_found.items()}
        alone = trained([Seed(args.folder, seed, stack) for seed in range(args.seeds)], rates, args.steps)
    found = {
        "environment": environment("cpu", ("torch",)), "steps": args.steps, "grid_steps": grid_steps,
        "grid": {name: {f"{lr:g}": loss for lr, loss in losses.items()} for name, losses in rates_found.items()},
        "rates": rates, "alone": alone, "differences": differences(alone),
    }  # fmt: skip
    write_json(args.json, found)
    for name, losses in found["grid"].items():
        print(f"{name:10} seed {GRID_SEED}, {grid_steps} steps: {losses}")
    for name, runs in alone.items():
        losses = [run["val_loss"] for run in runs]
        print(f"{name:10} lr {rates[name]:g}  {np.round(losses, 4)}")
    for name, difference in found["differences"].items():
        print(name, {key: np.round(value, 4) for key, value in difference.items()})


if __name__ == "__main__":
    main()
