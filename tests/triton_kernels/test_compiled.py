"""What the compilers make of the kernels, without a GPU: the instructions, the registers, no spills.

A few seconds a kernel and target; the whole table is the long version.
"""

import os
import re
from collections import Counter
from dataclasses import replace

import pytest
import triton.language as tl

from llmnas.triton_kernels import compiled, tiles, wide_backward

assert os.environ.get("TRITON_INTERPRET") != "1", "kernels must be compiled in a process without TRITON_INTERPRET"

QUICK = [
    ("ternary_gemm_m16", "cuda80"),
    ("ternary_gemm_m16", "cuda90"),
    ("ternary_gemm_m16", "cuda100"),
    ("ternary_gemm_m16", "gfx942"),
    ("ternary_gemv", "cuda90"),
    ("xnor_count", "cuda90"),
    ("scan_backward", "cuda90"),
    ("swiglu_norm_quant", "cuda80"),
    # every file of kernels, and the roundings, on every target
    ("rmsnorm_quant", "cuda100"),
    ("grad_weight", "cuda100"),
    ("swiglu_norm_backward_wide", "cuda100"),
    ("pack3", "gfx942"),
]
EVERY = [(kernel, target) for kernel in compiled.CASES for target in compiled.TARGETS]

# int8 (or bf16) products on tensor cores, by target
PRODUCT = {
    "cuda80": "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32",
    "cuda90": "wgmma.mma_async.sync.aligned",
    "cuda100": "tcgen05.mma",
    "gfx942": "v_mfma_i32",
}
INTEGER_PRODUCTS = {"ternary_gemm", "ternary_gemm_m16", "xnor_gemm"}
FLOAT_PRODUCTS = {"grad_input", "grad_weight"}
ROUNDING = {"act_quant", "rmsnorm_quant", "swiglu_norm_quant", "pack2", "pack3"}


def users_of_the_rounding_constant(text):
    """Instructions that compute with 1.5 x 2^23, written out or from a register (or a pair) that it was moved to."""
    names, found = {"0f4B400000", "0x4b400000"}, []
    for line in text.splitlines():
        code = line.split("//")[0].split(";")[0]
        words = set(re.findall(r"[%\w]+", code))
        pairs = {f"s{low}" for low, _ in re.findall(r"\bs\[(\d+):(\d+)\]", code)}
        if not names & (words | pairs):
            continue
        if (moved := re.match(r"\s*(?:mov\.b32|mov\.b64|s_mov_b32|v_mov_b32_e32)\s+([%\w]+)", code)) is not None:
            names.add(moved[1])
        elif "_f32" in code or ".f32" in code:  # AMD's registers come back with other contents
            found.append(line.strip())
    return found


def check(kernel, target):
    facts = compiled.build(kernel, target)
    assert facts.spilled == 0
    assert 0 < facts.registers <= 255
    assert facts.programs(compiled.UNITS[target]) >= 1
    assert 0 < facts.occupancy(compiled.UNITS[target]) <= 1
    text = facts.assembly
    if kernel in INTEGER_PRODUCTS:
        if (kernel, target) == ("ternary_gemm_m16", "cuda100") and PRODUCT[target] not in text:
            assert PRODUCT["cuda80"] in text  # tcgen05 wants 64 rows and more: Triton 3.7 takes mma.sync for 16
        else:
            assert PRODUCT[target] in text
            assert target != "cuda90" or "s32.s8.s8" in text
            assert target != "cuda100" or "kind::i8" in text
    if kernel in FLOAT_PRODUCTS:
        assert PRODUCT[target].split(".")[0].removesuffix("_i32") in text
    if kernel.startswith("ternary_gemv"):
        assert ("dp4a" if target.startswith("cuda") else "v_dot4") in text
    if kernel == "xnor_count":
        assert ("popc.b32" if target.startswith("cuda") else "v_bcnt_u32") in text
    if kernel in ROUNDING:
        # rounding by a large constant dies if the product before it is fused into the sum
        sums = users_of_the_rounding_constant(text)
        assert sums
        assert all("add" in line and "fma" not in line for line in sums), sums


@pytest.mark.parametrize(("kernel", "target"), QUICK)
def test_instructions_registers_and_spills(kernel, target):
    check(kernel, target)


@pytest.mark.full
@pytest.mark.parametrize(("kernel", "target"), EVERY)
def test_instructions_registers_and_spills_of_all(kernel, target):
    check(kernel, target)


ROWS = ("act_quant", "rmsnorm_quant", "rmsnorm_backward", "swiglu_norm_quant", "swiglu_norm_backward")
FP32 = {"DOT": tl.float32, "PRECISION": "tf32x3"}


@pytest.mark.full
@pytest.mark.parametrize("target", ["cuda80", "cuda90", "cuda100"])
@pytest.mark.parametrize("kernel", [*ROWS, *sorted(FLOAT_PRODUCTS)])
def test_wide_rows_and_gradients_in_fp32_do_not_spill_either(kernel, target, monkeypatch):
    """Rows of 8192, which is as far as the backward kernels hold a row in registers, and training in fp32."""
    assert wide_backward.WIDEST == 8192
    case = compiled.CASES[kernel]
    if kernel in ROWS:
        case = replace(case, constants=case.constants | {"BLOCK": 8192}, warps=tiles.row_warps(8192))
    else:
        tile = tiles.grad_gemm(fp32=True)
        sizes = {"grad_input": ("BLOCK_M", "BLOCK_N", "BLOCK_B"), "grad_weight": ("BLOCK_K", "BLOCK_N", "BLOCK_M")}
        constants = FP32 | dict(zip(sizes[kernel], (tile.m, tile.n, tile.k), strict=True))
        case = replace(case, constants=constants, types=case.types.replace("*bf16", "*fp32"), warps=tile.warps)
    monkeypatch.setitem(compiled.CASES, kernel, case)
    facts = compiled.build(kernel, target)
    assert facts.spilled == 0
    assert facts.programs(compiled.UNITS[target]) >= 1
    assert kernel in ROWS or "tf32" in facts.assembly


def test_every_kernel_is_in_the_table():
    """A kernel without a case would be shipped uncompiled."""
    from triton.runtime.jit import JITFunction

    modules = ("act_quant", "mlgru_scan", "rmsnorm_quant", "swiglu_norm_quant", "ternary_gemv", "ternary_linear")
    modules += ("ternary_matmul", "ternary_pack", "wide_backward", "xnor_matmul")
    kernels = {
        name
        for module in modules
        for name, value in vars(__import__(f"llmnas.triton_kernels.{module}", fromlist=["_"])).items()
        if isinstance(value, JITFunction) and name.endswith("_kernel")
    }
    assert kernels == {case.kernel.__name__ for case in compiled.CASES.values()}


def test_occupancy_by_hand():
    """An H100 gives registers out in eights and keeps 1 kB a program; MI300 has 512 registers a lane in each SIMD."""

    def facts(registers, shared, threads):
        return compiled.Facts(registers, 0, shared, threads, "", Counter())

    h100, mi300 = compiled.UNITS["cuda90"], compiled.UNITS["gfx942"]
    assert facts(37, 0, 128).programs(h100) == 65536 // (40 * 128) == 12
    assert facts(126, 57344, 256).programs(h100) == 2
    assert facts(32, 100_000, 128).programs(h100) == 2  # by shared memory
    assert facts(32, 56 * 1024, 128).programs(h100) == 4  # 228 kB in all, of which one program may have 227
    assert facts(16, 0, 32).programs(h100) == 32
    assert facts(16, 0, 256).occupancy(h100) == 1
    assert facts(101, 40960, 512).programs(mi300) == 1  # 104 registers: 4 waves a SIMD would fit, memory for one
    assert facts(66, 1024, 256).programs(mi300) == 512 // 72 == 7
    assert facts(66, 1024, 256).occupancy(mi300) == 7 / 8
