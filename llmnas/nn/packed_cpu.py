"""Packed ternary weights times quantised tokens on the CPU: 2 bits a weight are all that is read from memory.

Integers as on the GPU (`triton_kernels/ternary_matmul.py`), so the result is the same to the last bit. The four
planes of the groups meet four planes of the token, prepared once. With codes T + 1 the product is sum(code q) - sum(q),
and one instruction of AVX-512 VNNI (vpdpbusd) adds 64 such products of unsigned by signed bytes. A processor without it
gets a loop that LLVM makes vector code of for few tokens, and for many tokens a block of rows unpacked, small enough
for the cache, and the ordinary fp32 product.
Letters: M tokens, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from torch import Tensor

DIRECT_TOKENS = 16
ROWS_A_BLOCK = 64
TOKENS_A_BLOCK = 64
_TARGET = set(cpu_target.target_context.codegen().magic_tuple()[2].split(","))
"""What numba compiles for: this processor, or the one that NUMBA_CPU_NAME and NUMBA_CPU_FEATURES name."""
HAS_VNNI = {"+avx512vnni", "+avx512vl", "+avx512bw"} <= _TARGET


@intrinsic  # type: ignore[untyped-decorator]
def _dot_planes(_typing: Any, packed: Any, planes: Any, width: Any) -> Any:
    """sum (T + 1) q of one row: addresses of `width` packed bytes and of the token's 4 width bytes -> int32.

    `width` is a multiple of 16. Needs AVX-512 VNNI.
    """
    wide = ir.IntType(64)

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        row, token = (builder.inttoptr(at, ir.IntType(8).as_pointer()) for at in arguments[:2])
        size = arguments[2]
        whole = builder.and_(size, ir.Constant(wide, -64))
        most = _dot_blocks(builder, row, token, size, 64, ir.Constant(wide, 0), whole)
        return builder.add(most, _dot_blocks(builder, row, token, size, 16, whole, size))

    return numba.types.int32(packed, planes, width), generate


def _dot_blocks(builder: Any, row: Any, token: Any, size: Any, lanes: int, start: Any, stop: Any) -> Any:
    """The part of the sum from byte `start` to byte `stop`, `lanes` bytes at once."""
    byte, short, word, wide = (ir.IntType(bits) for bits in (8, 16, 32, 64))
    bytes_, shorts, sums = ir.VectorType(byte, lanes), ir.VectorType(short, lanes // 2), ir.VectorType(word, lanes // 4)
    dot = vnni(builder, lanes)
    zeros = ir.Constant(sums, [0] * (lanes // 4))
    totals = [cgutils.alloca_once_value(builder, zeros) for _ in range(4)]
    with cgutils.for_range_slice(builder, start, stop, ir.Constant(wide, lanes)) as (at, _):
        packed = builder.load(builder.bitcast(builder.gep(row, [at]), shorts.as_pointer()), align=1)
        for plane, total in enumerate(totals):
            shifted = builder.lshr(packed, ir.Constant(shorts, [2 * plane] * (lanes // 2)))
            code = builder.and_(builder.bitcast(shifted, bytes_), ir.Constant(bytes_, [3] * lanes))
            place = builder.add(at, builder.mul(ir.Constant(wide, plane), size))
            q = builder.load(builder.bitcast(builder.gep(token, [place]), sums.as_pointer()), align=1)
            builder.store(builder.call(dot, [builder.load(total), builder.bitcast(code, sums), q]), total)
    found = zeros
    for total in totals:
        found = builder.add(found, builder.load(total))
    return horizontal_sum(builder, found, lanes // 4)


def vnni(builder: Any, lanes: int) -> Any:
    """The instruction that adds four products of unsigned by signed bytes to each of lanes / 4 sums."""
    sums = ir.VectorType(ir.IntType(32), lanes // 4)
    name = f"llvm.x86.avx512.vpdpbusd.{8 * lanes}"
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(sums, [sums] * 3), name)


def horizontal_sum(builder: Any, sums: Any, lanes: int) -> Any:
    """The sum of a vector of 32-bit integers."""
    add = ir.FunctionType(ir.IntType(32), [ir.VectorType(ir.IntType(32), lanes)])
    name = f"llvm.vector.reduce.add.v{lanes}i32"
    return builder.call(cgutils.get_or_insert_function(builder.module, add, name), [sums])


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _rows_vnni(packed: Any, stride: int, width: int, planes: Any, minus: Any, first: int, last: int, out: Any) -> None:
    """out[m, n] = sum T[n, k] q[m, k] for rows first..last; planes: int8 [M, 4 width], minus: [M] sums of q."""
    base, tokens = packed.ctypes.data, planes.ctypes.data
    for begin in range(0, len(minus), TOKENS_A_BLOCK):
        end = min(begin + TOKENS_A_BLOCK, len(minus))
        for n in range(first, last):
            row = np.int64(base + n * stride)
            for m in range(begin, end):
                found = _dot_planes(row, np.int64(tokens + m * 4 * width), np.int64(width))
                out[m, n] = np.float32(found - minus[m])


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _rows(packed: Any, stride: int, width: int, planes: Any, minus: int, first: int, last: int, out: Any) -> None:
    """out[n] = sum T[n, k] q[k] for rows first..last; planes: int8 [4 width], minus: sum of q."""
    for n in range(first, last):
        row = packed[n * stride : n * stride + width]
        a, b, c, d = np.int32(0), np.int32(0), np.int32(0), np.int32(0)
        for i in range(width):
            v = np.int32(row[i])
            a += (v & 3) * np.int32(planes[i])
            b += ((v >> 2) & 3) * np.int32(planes[width + i])
            c += ((v >> 4) & 3) * np.int32(planes[2 * width + i])
            d += (v >> 6) * np.int32(planes[3 * width + i])
        # numba adds in 64 bits; cutting the sum to 32 lets LLVM keep all of it in 32, twice as fast
        out[n] = np.float32(np.int32(a + b + c + d - minus))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _unpack(packed: Any, stride: int, width: int, first: int, last: int, out: Any) -> None:
    """Rows first..last as fp32 -1, 0, 1 in plane order, [rows, 4, width]."""
    for n in range(first, last):
        row = packed[n * stride : n * stride + width]
        for plane in range(4):
            into, shift = out[n - first, plane], np.int32(2 * plane)
            for i in range(width):
                into[i] = np.float32(((np.int32(row[i]) >> shift) & np.int32(3)) - np.int32(1))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _to_planes(codes: Any, planes: Any, minus: Any) -> None:
    """Token features in the order of the planes: [groups, 4, 16] -> [4, groups, 16]; and their sums."""
    tokens, k = codes.shape
    width = k // 4
    for m in range(tokens):
        total = np.int32(0)
        for group in range(k // 64):
            for plane in range(4):
                for j in range(16):
                    value = codes[m, group * 64 + plane * 16 + j]
                    planes[m, plane * width + group * 16 + j] = value
                    total += np.int32(value)
        minus[m] = total


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _quantise(x: Any, codes: Any, scales: Any) -> None:
    """`reference.act_quant`, the same roundings: x fp32 [M, K]."""
    for m in range(len(x)):
        row, most = x[m], np.float32(1e-5)
        for k in range(len(row)):
            size = abs(row[k])
            if size > most:
                most = size
            elif size != size:  # as an infinity: the scale is 0
                most = np.float32(np.inf)
        # as torch divides a number by a tensor
        scale = np.float32(np.float32(1.0) / most) * np.float32(127.0)
        scales[m] = scale
        for k in range(len(row)):
            value = np.rint(row[k] * scale)
            # only NaN differs from itself; what a cast would make of it depends on the processor
            codes[m, k] = np.int8(value) if value == value else np.int8(0)


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 tokens [M, K] with neighbouring features to int8 codes [M, K] and scales [M]."""
    codes, scales = torch.empty(x.shape, dtype=torch.int8), torch.empty(len(x))
    _quantise(x.numpy(), codes.numpy(), scales.numpy())
    return codes, scales


def matmul(codes: Tensor, packed: Tensor) -> Tensor:
    """The sums of products, exact, as fp32 [M, N].

    Uses torch's number of threads. Arguments are checked by the caller (`llmnas.nn.kernels`).

    Args:
        codes: int8 [M, K], K at most 2^17.
        packed: uint8 [N, K / 4]; a leading slice is fine, it is not copied.
    """
    (m, k), (n, width) = codes.shape, packed.shape
    y = torch.empty(m, n)
    if not (m and n):
        return y
    planes, minus = torch.empty(m, k, dtype=torch.int8), torch.empty(m, dtype=torch.int32)
    _to_planes(codes.numpy(), planes.numpy(), minus.numpy())
    flat = packed.as_strided(((n - 1) * packed.stride(0) + width,), (1,)).numpy()
    workers = min(torch.get_num_threads(), n) if m * n * k >= 1 << 20 else 1
    share = way(m)
    if workers == 1:
        share(planes, minus, flat, packed.stride(0), width, 0, n, y)
        return y
    bounds = [n * i // workers for i in range(workers + 1)]
    with ThreadPoolExecutor(workers) as pool:
        work = [(planes, minus, flat, packed.stride(0), width, lo, hi, y) for lo, hi in pairwise(bounds)]
        for done in [pool.submit(share, *one) for one in work]:
            done.result()
    return y


def way(tokens: int) -> Callable[..., None]:
    """How this processor multiplies so many tokens."""
    if HAS_VNNI:
        return _bytes_at_once
    return _few_tokens if tokens <= DIRECT_TOKENS else _many_tokens


def _bytes_at_once(
    planes: Tensor, minus: Tensor, flat: Any, stride: int, width: int, first: int, last: int, y: Tensor
) -> None:
    _rows_vnni(flat, stride, width, planes.numpy(), minus.numpy(), first, last, y.numpy())


def _few_tokens(
    planes: Tensor, minus: Tensor, flat: Any, stride: int, width: int, first: int, last: int, y: Tensor
) -> None:
    for token, less, out in zip(planes.numpy(), minus.numpy(), y.numpy(), strict=True):
        _rows(flat, stride, width, token, less, first, last, out)


def _many_tokens(
    planes: Tensor, _minus: Tensor, flat: Any, stride: int, width: int, first: int, last: int, y: Tensor
) -> None:
    block, tokens = torch.empty(min(ROWS_A_BLOCK, last - first), 4, width), planes.float()
    for lo in range(first, last, ROWS_A_BLOCK):
        hi = min(lo + ROWS_A_BLOCK, last)
        _unpack(flat, stride, width, lo, hi, block.numpy())
        y[:, lo:hi] = tokens @ block[: hi - lo].flatten(1).T
