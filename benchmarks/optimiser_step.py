"""What an optimizer's update costs beside the forward and backward pass of a step.

    python benchmarks/optimiser_step.py                 # --quick for a small one

A supernet of 256 wide, 6 layers, 8 x 256 tokens; a step trains its middle or its largest network. The updates run in
turn on the same gradients, one thread, CPU time; figures are medians in milliseconds and shares of the step with
AdamW on everything (torch's fused one, as it is used with `update: all`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from interleave import environment, interleave

from llmnas import Architecture, SearchSpace
from llmnas.files import write_json
from llmnas.supernet import Transformer
from llmnas.train.optimizer import announce, build_optimizer, locate
from llmnas.train.settings import TrainSettings

VARIANTS: dict[str, dict[str, Any]] = {
    "adamw all": {},
    "adamw active": {"update": "active"},
    "muon slice": {"update": "active", "optimizer": "muon"},
    "muon whole": {"update": "active", "optimizer": "muon", "muon": {"scope": "whole"}},
}
FULL = {"hidden_size": [128, 192, 256], "kv_heads": [2, 3, 4], "ffn_size": [384, 576, 768], "layers": 6, "batch": 8}
QUICK = {"hidden_size": [32, 48, 64], "kv_heads": [1, 2], "ffn_size": [64, 96, 192], "layers": 2, "batch": 2}


def space_of(size: dict[str, Any]) -> SearchSpace:
    """Every size elastic but the head's."""
    return SearchSpace.from_dict(
        {
            "base": {"vocab_size": 4096, "tied": True, "max_seq": 256},
            "layers": size["layers"], "hidden_size": size["hidden_size"], "depth": [size["layers"] - 1, size["layers"]],
            "kv_heads": size["kv_heads"], "queries_per_group": 2, "head_dim": 32, "ffn_size": size["ffn_size"],
        }
    )  # fmt: skip


def measured(space: SearchSpace, arch: Architecture, batch: int, repeats: int) -> dict[str, float]:
    """Median milliseconds of the passes and of every update."""
    steps: dict[str, Callable[[], Any]] = {}
    tokens = torch.randint(space.base.vocab_size, (batch, 257))
    for name, changes in VARIANTS.items():
        model = Transformer(space)
        optimizer = build_optimizer(model, TrainSettings.model_validate({"steps": 1, "lr": 1e-6, **changes}))
        locate(optimizer, model, None, 0)
        model(tokens[:, :-1], arch, targets=tokens[:, 1:]).loss.backward()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

        def update(model: Transformer = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
            announce(optimizer, model, [arch], None)
            optimizer.step()

        steps[name] = update
    passing = Transformer(space)

    def passes() -> None:
        passing.zero_grad()
        passing(tokens[:, :-1], arch, targets=tokens[:, 1:]).loss.backward()

    times = interleave({"passes": passes, **steps}, repeats, "cpu")
    return {name: 1e3 * median(found) for name, found in times.items()}


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "optimiser_step.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    size = QUICK if args.quick else FULL
    space = space_of(size)
    found = {}
    print("| network | passes | " + " | ".join(VARIANTS) + " |\n|" + "---|" * (len(VARIANTS) + 2))
    for name, arch in (("middle", space.middle()), ("largest", space.largest())):
        times = found[name] = measured(space, arch, size["batch"], args.repeats)
        step = times["passes"] + times["adamw all"]
        cells = [f"{times[v]:.1f} ({(times[v] - times['adamw all']) / step:+.1%})" for v in VARIANTS]
        print(f"| {name} | {times['passes']:.0f} | " + " | ".join(cells) + " |", flush=True)
    write_json(args.json, {"environment": environment("cpu", ("torch",)), "size": size, "milliseconds": found})


if __name__ == "__main__":
    main()
