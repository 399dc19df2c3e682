"""A training step of an all-ternary network over the step of its dense twin, on the CPU: time and kept activations.

The two are the same architecture but for the kind of their weights; forward, backward and AdamW, interleaved, medians
of paired ratios. Kept activations are the bytes that autograd stores between forward and backward, weights left out.

    python benchmarks/ternary_step.py [--repeats 9] [--json benchmarks/results/ternary_step.json]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from interleave import Variants, environment, interleave, ratio
from torch import Tensor

from llmnas.files import write_json
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec
from llmnas.space.architecture import Mixer, Weights
from llmnas.supernet import Transformer

RESULTS = Path(__file__).parent / "results" / "ternary_step.json"
VOCAB, BATCH, SEQ, LAYERS = 4096, 8, 256, 4
# hidden size, KV heads, queries a group, head_dim, FFN size
SHAPES = {"128": (128, 4, 1, 32, 384), "256": (256, 4, 2, 32, 1024), "512": (512, 4, 2, 64, 1536)}


def network(shape: str, weights: Weights, mixer: Mixer) -> Transformer:
    """All layers alike, vocabulary of the quickstart."""
    hidden, *heads, ffn = SHAPES[shape]
    spec = LayerSpec(heads[0], heads[1], heads[2], ffn, weights=weights, mixer=mixer)
    return Transformer(FixedShape(BaseModel(vocab_size=VOCAB, max_seq=SEQ), Architecture(hidden, (spec,) * LAYERS)))


def make_step(model: Transformer) -> Any:
    """A whole optimizer step on the same tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    text = torch.randint(VOCAB, (BATCH, SEQ + 1), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        optimizer.zero_grad()
        model(text[:, :-1], targets=text[:, 1:]).loss.backward()  # type: ignore[union-attr]
        optimizer.step()

    return step


def kept_bytes(model: Transformer) -> int:
    """Bytes of the different tensors that autograd keeps for the backward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    text = torch.zeros(BATCH, SEQ, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(text, targets=text).loss  # type: ignore[union-attr]
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del loss
    return total


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--clock", choices=["cpu", "wall"], default="cpu")
    parser.add_argument("--json", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    mixers: tuple[Mixer, ...] = ("attention", "mlgru")
    for shape in arguments.shapes:
        for mixer in mixers:
            models = {kind: network(shape, kind, mixer) for kind in ("dense", "ternary")}  # type: ignore[arg-type]
            variants: Variants = {kind: make_step(model) for kind, model in models.items()}
            times = interleave(variants, arguments.repeats, arguments.clock)
            kept = {kind: kept_bytes(model) for kind, model in models.items()}
            rows.append({
                "hidden_size": int(shape), "mixer": mixer, "tokens": BATCH * SEQ,
                "dense_s": sorted(times["dense"])[arguments.repeats // 2],
                "step_ratio": ratio(times, "ternary", "dense"), "kept_bytes": kept,
                "kept_ratio": kept["ternary"] / kept["dense"],
            })  # fmt: skip
            print(rows[-1], flush=True)
    write_json(arguments.json, {"environment": environment(arguments.clock, ("torch",)), "rows": rows})
    print(f"wrote {arguments.json}")


if __name__ == "__main__":
    main()
