"""An export in our own class with packed weights against the same in floats: bytes of the file, time of a token.

Random weights, all layers MLGRU, embedding tied to the head. The times are of one thread, one token at a time, the
variants in turn, CPU time: packed with numba, packed without it, and from floats (quantised again for every token).

    python benchmarks/export_size.py [--repeats 5] [--out benchmarks/results/export_size.csv]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from decode_ternary import SHAPES, TOKENS, decoder, network
from interleave import interleave
from tables import line, write_csv

from llmnas.export import Card
from llmnas.export.hf import write_checkpoint
from llmnas.export.layout import Layout, lay_out
from llmnas.export.modeling_llmnas import LlmnasForCausalLM
from llmnas.export.own import own_config, own_weights
from llmnas.nn import packed_products
from llmnas.space.architecture import Weights
from llmnas.supernet import Transformer

RESULTS = Path(__file__).parent / "results" / "export_size.csv"


def in_floats(model: Transformer, eos_id: int | None) -> Layout:
    """The layout of our own class without packing."""
    return lay_out(model, eos_id)._replace(config=own_config(model, eos_id), weights=own_weights(model))


def row(kind: Weights, repeats: int) -> dict[str, Any]:
    """One kind of weights, written both ways, read again and compared."""
    shape = SHAPES[1]
    model, tokens = network(shape, kind, "mlgru"), torch.arange(12).view(1, 12)
    read, figures = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, layout in (("floats", in_floats), ("packed", lay_out)):
            path = Path(folder, name)
            path.mkdir()
            write_checkpoint(model, path, None, Card(name, {}, "none", 0, 0), lay=layout)
            figures[f"{name}_bytes"] = (path / "model.safetensors").stat().st_size
            read[name] = LlmnasForCausalLM.from_pretrained(path)
    with torch.no_grad():
        if not all(torch.equal(one(tokens).logits, model(tokens)) for one in read.values()):
            raise RuntimeError(f"{kind}: an export computes something else")
    packed = decoder(read["packed"].model)
    calls = {"numba": packed, "torch": without_numba(packed), "floats": decoder(read["floats"].model)}
    times = interleave(calls, repeats, "cpu")
    for name, spent in times.items():
        figures[f"{name}_ms"] = round(1e3 * statistics.median(spent) / (TOKENS - 1), 1)
    hidden, _, ffn, layers = shape
    embedding = model.embedding.weight.nbytes
    sizes = {"hidden_size": hidden, "layers": layers, "ffn_size": ffn, "embedding_bytes": embedding}
    return {"weights": kind, **sizes, **figures}


def without_numba(decode: Callable[[], list[int]]) -> Callable[[], list[int]]:
    """The same where numba is not installed."""

    def slow() -> list[int]:
        with mock.patch.object(packed_products, "compiled", return_value=False):
            return decode()

    return slow


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kinds: tuple[Weights, ...] = ("ternary", "binary")
    rows = []
    for kind in kinds:
        rows.append(row(kind, arguments.repeats))
        print(line(rows[-1]), flush=True)
    write_csv(arguments.out, rows)


if __name__ == "__main__":
    main()
