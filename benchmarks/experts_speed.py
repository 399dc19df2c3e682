"""A layer of experts against what it should cost: dense layers of the same active size, and transformers' own block.

    python benchmarks/experts_speed.py [--json FILE]

Forward and backward, float32, CPU time of one thread, interleaved; every ratio is the median over rounds of ratios
within a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from llmnas.nn.ffn import FeedForward
from llmnas.nn.moe import Experts
from llmnas.space import BaseModel, LayerKinds, LayerSpec

HIDDEN, FFN, EXPERTS, TOKENS = 128, 256, 8, 2048
BASE = BaseModel(vocab_size=8)


def filled(module: torch.nn.Module) -> torch.nn.Module:
    """Weights of usual size."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return module


def step(forward: Callable[[torch.Tensor], torch.Tensor], module: torch.nn.Module) -> Callable[[], None]:
    """One forward and backward on fresh activations."""

    def run() -> None:
        x = torch.randn(1, TOKENS, HIDDEN, requires_grad=True)
        module.zero_grad(set_to_none=True)
        forward(x).square().mean().backward()

    return run


def qwen(top_k: int, implementation: str) -> Callable[[], None]:
    """A step of transformers' block; `eager` loops over experts, `grouped_mm` does not."""
    config = Qwen3MoeConfig(
        hidden_size=HIDDEN, moe_intermediate_size=FFN, num_experts=EXPERTS, num_experts_per_tok=top_k,
        experts_implementation=implementation,
    )  # fmt: skip
    block = filled(Qwen3MoeSparseMoeBlock(config))
    return step(block, block)


def cases(top_k: int) -> dict[str, Callable[[], None]]:
    """The layer of experts, a dense layer as wide as the experts a token uses, and the block of Qwen3-MoE."""
    spec = LayerSpec(1, 1, 2, FFN, experts=EXPERTS, top_k=top_k)
    ours = filled(Experts(BASE, HIDDEN, spec, LayerKinds()))
    wide = LayerSpec(1, 1, 2, FFN * top_k)
    dense = filled(FeedForward(BASE, HIDDEN, wide.ffn_size, LayerKinds()))

    return {
        "experts": step(lambda x: ours(x, spec)[0], ours),
        "dense of equal active size": step(lambda x: dense(x, wide), dense),
        "transformers' Qwen3MoE block, eager": qwen(top_k, "eager"),
        "transformers' Qwen3MoE block, grouped_mm": qwen(top_k, "grouped_mm"),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for top_k in (1, 2, 4):
        runs = cases(top_k)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for i in range(args.rounds + 2):
            for name, run in runs.items():
                begin = time.process_time()
                run()
                if i >= 2:
                    times[name].append(time.process_time() - begin)
        ratios = {
            name: statistics.median(a / b for a, b in zip(times["experts"], times[name], strict=True))
            for name in list(runs)[1:]
        }
        found[f"top_k {top_k}"] = {"seconds": {n: statistics.median(t) for n, t in times.items()}, "ratio to": ratios}
        print(f"top {top_k} of {EXPERTS}: " + ", ".join(f"{r:.2f} x {name}" for name, r in ratios.items()))
    if args.json:
        args.json.write_text(json.dumps({"torch": torch.__version__, "threads": 1, **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
