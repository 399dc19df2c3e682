"""Decoding with packed models on the CPU: ternary at 2 bits and binary at 1, against their dense fp32 twin.

One sequence, one token at a time, greedy, after a prompt; one thread, all interleaved, CPU time. The dense twin and the
ternary network unpacked have the same sizes. Embedding and head are dense fp32 in all of them.

    python benchmarks/decode_ternary.py [--repeats 7] [--out benchmarks/results/decode_ternary.csv]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from interleave import CLOCKS, interleave, ratio
from tables import line, write_csv

from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec
from llmnas.space.architecture import Mixer, Weights
from llmnas.supernet import Transformer, pack

RESULTS = Path(__file__).parent / "results" / "decode_ternary.csv"
VOCAB, PROMPT, TOKENS = 4096, 16, 16
# hidden size, heads of 64, FFN size, layers
SHAPES = ((256, 4, 768, 4), (512, 8, 1536, 6), (1024, 16, 2816, 6), (2048, 32, 5632, 4))


def network(shape: tuple[int, int, int, int], weights: Weights, mixer: Mixer) -> Transformer:
    """All layers alike."""
    hidden, heads, ffn, layers = shape
    spec = LayerSpec(heads, 1, 64, ffn, weights=weights, mixer=mixer)
    base = BaseModel(vocab_size=VOCAB, max_seq=PROMPT + TOKENS)
    return Transformer(FixedShape(base, Architecture(hidden, (spec,) * layers))).eval()


def decoder(model: Transformer) -> Callable[[], list[int]]:
    """Reads a prompt once; every call goes back to its end and decodes TOKENS greedily."""
    prompt = torch.randint(model.base.vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    cache = model.new_cache(model.envelope, 1, PROMPT + TOKENS)
    with torch.inference_mode():
        first = int(model(prompt, cache=cache)[0, -1].argmax())  # type: ignore[index]
    place = cache.mark()

    def decode() -> list[int]:
        cache.back_to(place)
        found = [first]
        with torch.inference_mode():
            while len(found) < TOKENS:
                logits: Any = model(torch.tensor([[found[-1]]]), cache=cache)
                found.append(int(logits[0, -1].argmax()))
        return found

    return decode


def layer_bytes(model: Transformer) -> int:
    """Bytes of everything but embedding and head."""
    return sum(value.nbytes for name, value in model.state_dict().items() if name.startswith("layers"))


def row(shape: tuple[int, int, int, int], mixer: Mixer, repeats: int, clock: str) -> dict[str, Any]:
    """Measure one shape."""
    ternary, dense = network(shape, "ternary", mixer), network(shape, "dense", mixer)
    binary = network(shape, "binary", mixer)
    packed, signs = pack(ternary), pack(binary)
    if decoder(signs)() != decoder(binary)():
        raise RuntimeError(f"{shape}: the packed binary network says something else")
    del binary
    calls = {"dense": decoder(dense), "unpacked": decoder(ternary), "packed": decoder(packed), "signs": decoder(signs)}
    if calls["packed"]() != calls["unpacked"]():
        raise RuntimeError(f"{shape}: the packed network says something else")
    times = interleave(calls, repeats, clock)
    rate = {name: (TOKENS - 1) / statistics.median(found) for name, found in times.items()}
    return {
        "hidden_size": shape[0], "layers": shape[3], "mixer": mixer,
        "dense_tokens_per_s": round(rate["dense"], 1), "unpacked_tokens_per_s": round(rate["unpacked"], 1),
        "packed_tokens_per_s": round(rate["packed"], 1),
        "packed_over_dense": round(ratio(times, "dense", "packed")["median"], 2),
        "binary_tokens_per_s": round(rate["signs"], 1),
        "binary_over_dense": round(ratio(times, "dense", "signs")["median"], 2),
        "dense_layer_bytes": layer_bytes(dense), "packed_layer_bytes": layer_bytes(packed),
        "binary_layer_bytes": layer_bytes(signs), "repeats": repeats,
    }  # fmt: skip


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--clock", choices=list(CLOCKS), default="cpu")
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="how many of the shapes, from the smallest")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    mixers: tuple[Mixer, ...] = ("mlgru", "attention")
    for shape in SHAPES[: arguments.shapes]:
        for mixer in mixers:
            rows.append(row(shape, mixer, arguments.repeats, arguments.clock))
            print(line(rows[-1]), flush=True)
    write_csv(arguments.out, rows)


if __name__ == "__main__":
    main()
