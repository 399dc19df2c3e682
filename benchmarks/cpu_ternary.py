"""Packed ternary linear layers on the CPU against dense fp32 ones of the same shape: time and weight bytes.

One thread, the two interleaved, medians of the ratio; the packed side includes the quantisation of the tokens.

    python benchmarks/cpu_ternary.py [--repeats 15] [--out benchmarks/results/cpu_ternary.csv]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from tables import line, write_csv

from llmnas.nn import kernels

RESULTS = Path(__file__).parent / "results" / "cpu_ternary.csv"
SHAPES = [(256, 256), (512, 512), (1024, 1024), (2048, 2048), (4096, 4096), (11008, 4096), (4096, 11008)]
TOKENS = [1, 4, 16, 64]


def seconds(function: object) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    function()  # type: ignore[operator]
    return time.perf_counter() - begin


def row(m: int, n: int, k: int, repeats: int) -> dict[str, object]:
    """Measure one shape."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(n, k, generator=generator), torch.randn(m, k, generator=generator)
    packed = kernels.pack(weight, weight.abs().mean())
    dense, sparse = [], []
    for turn in range(repeats + 1):  # the first turn warms up
        first = seconds(lambda: torch.nn.functional.linear(x, weight))
        second = seconds(lambda: kernels.packed_linear(kernels.quantise(x, packed=True), packed))
        if turn:
            dense.append(first)
            sparse.append(second)
    return {
        "m": m,
        "n": n,
        "k": k,
        "dense_ms": round(1e3 * statistics.median(dense), 4),
        "packed_ms": round(1e3 * statistics.median(sparse), 4),
        "speedup": round(statistics.median(a / b for a, b in zip(dense, sparse, strict=True)), 3),
        "dense_bytes": weight.nbytes,
        "packed_bytes": packed.codes.nbytes + packed.gamma.nbytes,
    }


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for n, k in SHAPES:
        for m in TOKENS:
            rows.append(row(m, n, k, arguments.repeats))
            print(line(rows[-1]), flush=True)
    write_csv(arguments.out, rows)


if __name__ == "__main__":
    main()
