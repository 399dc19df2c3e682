"""Tile sizes as pure functions of the shape: no autotuning at run time, so the first call is as fast as the last.

Chosen from the compiled code (registers, shared memory, spills: benchmarks/kernel_compile_report.py), not tuned on
a GPU.
"""

from __future__ import annotations

from typing import NamedTuple


class Gemm(NamedTuple):
    """Tile of a matrix product: tokens, outputs, packed bytes (or features) a step, warps, pipeline stages."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


def ternary_gemm(m: int) -> Gemm:
    """Tile of the packed ternary product; `k` counts packed bytes, four weights each."""
    if m <= 16:
        return Gemm(16, 64, 64, 4, 4)
    if m <= 64:
        return Gemm(64, 64, 64, 4, 3)
    return Gemm(128, 128, 32, 8, 3)


def ternary_gemv(n: int, words: int) -> tuple[int, int, int]:
    """(outputs, 32-bit words of a row a step, warps) of the matrix-vector product.

    128 words are one 16-byte load of each thread of a warp: a warp owns whole rows and sums without shared memory.
    """
    return (16 if n >= 4096 else 4), (64 if words <= 64 else 128), 4


def xnor_gemm() -> Gemm:
    """Tile of the binary product on int8 tensor cores; `k` counts bytes, eight weights each."""
    return Gemm(64, 64, 32, 4, 2)


def grad_gemm(*, fp32: bool = False) -> Gemm:
    """Tile of the two backward products; operands in `fp32` take twice the registers, and spill in the wider tile."""
    return Gemm(64, 32, 32, 8, 2) if fp32 else Gemm(64, 64, 32, 4, 2)


def row_warps(block: int) -> int:
    """Warps for a program that holds a row of `block` values: 16 values a thread, 32 in the widest rows."""
    return max(4, min(32, block // 512))


def scan(width: int) -> tuple[int, int, int]:
    """(time steps a chunk, channels, warps) of the recurrence."""
    return 32, 32 if width > 16 else 16, 4
