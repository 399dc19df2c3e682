"""A training step of an all-ternary network over that of its dense twin and of a plain implementation, on the CPU.

All three are the same architecture. The plain one quantises in floats and lets gradients through by the detach trick,
for every projection anew, as the reference code of BitNet does. Forward, backward and AdamW, interleaved, medians
of paired ratios. Kept activations are the bytes that autograd stores between forward and backward, weights left out;
peak memory is that of a process of its own which makes three steps, over what it held before the first.

    python benchmarks/ternary_step.py [--repeats 9] [--json benchmarks/results/ternary_step.json]
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from interleave import Variants, environment, interleave, peak_rss_mib, ratio
from torch import Tensor

from llmnas.files import write_json
from llmnas.nn import kernels
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec
from llmnas.space.architecture import Mixer, Weights
from llmnas.supernet import Transformer
from llmnas.triton_kernels import reference

RESULTS = Path(__file__).parent / "results" / "ternary_step.json"
VOCAB, BATCH, SEQ, LAYERS = 4096, 8, 256, 4
# hidden size, KV heads, queries a group, head_dim, FFN size
SHAPES = {"128": (128, 4, 1, 32, 384), "256": (256, 4, 2, 32, 1024), "512": (512, 4, 2, 64, 1536)}


KINDS = ("dense", "ternary", "plain")


@contextlib.contextmanager
def products_of(kind: str) -> Iterator[None]:
    """Inside, ternary products are the plain ones where `kind` says so."""
    ours = kernels.code_linear

    def plain(x: kernels.Codes, weight: Tensor, scale: Tensor, _kind: Weights) -> Tensor:
        y = reference.ternary_linear(x.link.flatten(0, -2), weight, scale.flatten())
        return y.view(*x.shape[:-1], weight.shape[0])

    kernels.code_linear = plain if kind == "plain" else ours
    try:
        yield
    finally:
        kernels.code_linear = ours


def network(shape: str, kind: str, mixer: Mixer) -> Transformer:
    """All layers alike, vocabulary of search_configs/dense_1m.yaml."""
    hidden, *heads, ffn = SHAPES[shape]
    weights: Weights = "dense" if kind == "dense" else "ternary"
    spec = LayerSpec(heads[0], heads[1], heads[2], ffn, weights=weights, mixer=mixer)
    return Transformer(FixedShape(BaseModel(vocab_size=VOCAB, max_seq=SEQ), Architecture(hidden, (spec,) * LAYERS)))


def make_step(model: Transformer, kind: str) -> Any:
    """A whole optimizer step on the same tokens; returns the loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    text = torch.randint(VOCAB, (BATCH, SEQ + 1), generator=torch.Generator().manual_seed(0))

    def step() -> float:
        optimizer.zero_grad()
        with products_of(kind):
            loss = model(text[:, :-1], targets=text[:, 1:]).loss  # type: ignore[union-attr]
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def kept_bytes(model: Transformer, kind: str) -> int:
    """Bytes of the different tensors that autograd keeps for the backward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    text = torch.zeros(BATCH, SEQ, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), products_of(kind):
        loss = model(text, targets=text).loss  # type: ignore[union-attr]
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del loss
    return total


def peak_mib(shape: str, kind: str, mixer: Mixer) -> float:
    """Memory that three steps of a process add to what it held before them: activations, gradients, AdamW's moments."""
    command = [sys.executable, __file__, "--peak-of", shape, kind, mixer]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(shape: str, kind: str, mixer: Mixer) -> None:
    """What the process of `peak_mib` does."""
    step = make_step(network(shape, kind, mixer), kind)
    before = peak_rss_mib()
    for _ in range(3):
        step()
    print(peak_rss_mib() - before)


def row(shape: str, mixer: Mixer, repeats: int, clock: str) -> dict[str, Any]:
    """Measure one shape."""
    models = {kind: network(shape, kind, mixer) for kind in KINDS}
    variants: Variants = {kind: make_step(model, kind) for kind, model in models.items()}
    first = {kind: step() for kind, step in variants.items()}
    if abs(first["ternary"] - first["plain"]) > 1e-3:
        raise RuntimeError(f"the plain implementation has another loss: {first}")
    times = interleave(variants, repeats, clock)
    kept = {kind: kept_bytes(model, kind) for kind, model in models.items()}
    return {
        "hidden_size": int(shape), "mixer": mixer, "tokens": BATCH * SEQ, "repeats": repeats,
        "dense_s": sorted(times["dense"])[repeats // 2],
        "step_ratio": ratio(times, "ternary", "dense"), "step_ratio_to_plain": ratio(times, "ternary", "plain"),
        "kept_bytes": kept, "kept_ratio": kept["ternary"] / kept["dense"],
        "kept_ratio_to_plain": kept["ternary"] / kept["plain"],
        "peak_mib": {kind: peak_mib(shape, kind, mixer) for kind in KINDS},
    }  # fmt: skip


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--clock", choices=["cpu", "wall"], default="cpu")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--peak-of", nargs=3, metavar=("SHAPE", "KIND", "MIXER"), help="measure one process's memory")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak_of:
        print_peak(*arguments.peak_of)
        return
    rows: list[dict[str, Any]] = []
    mixers: tuple[Mixer, ...] = ("attention", "mlgru")
    for shape in arguments.shapes:
        for mixer in mixers:
            rows.append(row(shape, mixer, arguments.repeats, arguments.clock))
            print(rows[-1], flush=True)
    write_json(arguments.json, {"environment": environment(arguments.clock, ("torch",)), "rows": rows})
    print(f"wrote {arguments.json}")


if __name__ == "__main__":
    main()
