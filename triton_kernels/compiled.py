"""What the compilers make of the kernels, without a GPU: registers, shared memory, spills and the instructions used.

`CASES` lists every kernel with the constants of one real launch. Run in a process without TRITON_INTERPRET.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from llmnas.triton_kernels import (
    act_quant,
    mlgru_scan,
    rmsnorm_quant,
    swiglu_norm_quant,
    ternary_gemv,
    ternary_linear,
    ternary_matmul,
    ternary_pack,
    tiles,
    wide_backward,
    xnor_matmul,
)

TARGETS = {
    "cuda80": GPUTarget("cuda", 80, 32),
    "cuda90": GPUTarget("cuda", 90, 32),
    "cuda100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@dataclass(frozen=True)
class Unit:
    """What programs share on one multiprocessor (AMD: compute unit)."""

    registers: int  # 32-bit ones, of all threads together
    shared: int  # bytes
    reserved: int = 0  # bytes of shared memory that every program costs besides its own
    threads: int = 2048
    programs: int = 32


# CUDA C++ Programming Guide, table of compute capabilities; CDNA 3 ISA: 4 SIMDs x 512 registers x 64 lanes, 64 kB
UNITS = {
    "cuda80": Unit(65536, 164 * 1024, 1024),
    "cuda90": Unit(65536, 228 * 1024, 1024),
    "cuda100": Unit(65536, 228 * 1024, 1024),
    "gfx942": Unit(131072, 64 * 1024),
}
REGISTER_GRANULE = 8  # registers of a thread are given out in eights, by both makers
BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_FIELD = re.compile(r"(REG|STACK|SHARED|LOCAL):(\d+)")
_SASS = re.compile(r"^\s*(?:/\*[0-9a-f]+\*/)?\s*(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]+)(?:\.[\w.]+)?\s", re.MULTILINE)


@dataclass(frozen=True)
class Case:
    """One kernel with the constants and types of one launch."""

    kernel: Any
    types: str  # of the arguments that are not constants, in order; see `signature`
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 3
    fusion: bool = True
    only_cuda: dict[str, Any] = field(default_factory=dict)  # constants that NVIDIA launches have instead


@dataclass(frozen=True)
class Facts:
    """What a compiled kernel needs and does."""

    registers: int  # a thread
    spilled: int  # bytes of stack a thread
    shared: int  # bytes a program
    threads: int  # a program
    assembly: str  # PTX, or AMD's
    machine: Counter[str]  # opcode -> how often it stands in the machine code

    def programs(self, unit: Unit) -> int:
        """How many programs fit on one multiprocessor, by registers, threads and shared memory."""
        given_out = -(-max(self.registers, 1) // REGISTER_GRANULE) * REGISTER_GRANULE
        fits = [unit.registers // (given_out * self.threads), unit.threads // self.threads, unit.programs]
        shared = self.shared + unit.reserved
        return min([*fits, unit.shared // shared] if shared else fits)

    def occupancy(self, unit: Unit) -> float:
        """Share of the threads of a multiprocessor that can be there at once."""
        return self.programs(unit) * self.threads / unit.threads


def _cases() -> dict[str, Case]:
    gemm, small, back = tiles.ternary_gemm(4096), tiles.ternary_gemm(16), tiles.grad_gemm()
    binary, (block_n, block_w, gemv_warps) = tiles.xnor_gemm(), tiles.ternary_gemv(4096, 1024)
    steps, channels, scan_warps = tiles.scan(4096)
    row = {"BLOCK": 4096}
    wide = tiles.row_warps(4096)
    wide_row, sizes = {"BLOCK": wide_backward.BLOCK}, "i i i i i"
    packing = {"BLOCK_N": ternary_pack.BLOCK_N, "BLOCK_B": ternary_pack.BLOCK_B}
    scan = {"STATE": True, "STARTS": True, "ACC": tl.float32, "BLOCK_T": steps, "BLOCK_W": channels}

    def tile(of: tiles.Gemm) -> dict[str, Any]:
        return {"BLOCK_M": of.m, "BLOCK_N": of.n, "BLOCK_B": of.k}

    dot = {"DOT": tl.bfloat16, "PRECISION": "ieee"}
    gemv = {"BLOCK_N": block_n, "BLOCK_W": block_w, "ASM": False}
    gemm_types = "*i8 *fp32 *u8 *fp32 *bf16 i i i i i i"
    gemv_types = "*i32 *fp32 *i32 *fp32 *bf16 1 i i i i i"
    weight_tile = {"BLOCK_M": back.k, "BLOCK_N": back.n, "BLOCK_K": back.m}
    asm = {"ASM": True}
    return {
        "act_quant": Case(act_quant.act_quant_kernel, "*bf16 *i8 *fp32 i i", row, wide, fusion=False),
        "rmsnorm_quant": Case(
            rmsnorm_quant.rmsnorm_quant_kernel, "*bf16 *bf16 *fp32 *bf16 *i8 *fp32 *fp32 i f i i",
            {"RESIDUAL": True, **row}, wide, fusion=False,
        ),
        "rmsnorm_backward": Case(
            rmsnorm_quant.rmsnorm_backward_kernel, "*bf16 *bf16 *bf16 *fp32 *fp32 *bf16 *fp32 i i i i i",
            {"STREAM": True, **row}, wide,
        ),
        "swiglu_norm_quant": Case(
            swiglu_norm_quant.swiglu_norm_quant_kernel, "*bf16 *bf16 *fp32 *i8 *fp32 *fp32 i f i i", row, wide,
            fusion=False,
        ),
        "swiglu_norm_backward": Case(
            swiglu_norm_quant.swiglu_norm_backward_kernel,
            "*bf16 *bf16 *bf16 *fp32 *fp32 *bf16 *bf16 *fp32 i i i i i", row, wide,
        ),
        "rmsnorm_backward_wide": Case(
            wide_backward.wide_backward_kernel, f"*bf16 *bf16 *bf16 *bf16 *fp32 *fp32 *bf16 *bf16 {sizes}",
            {"GATED": False, "STREAM": True, **wide_row}, wide_backward.WARPS,
        ),
        "swiglu_norm_backward_wide": Case(
            wide_backward.wide_backward_kernel, f"*bf16 *bf16 *bf16 *bf16 *fp32 *fp32 *bf16 *bf16 {sizes}",
            {"GATED": True, "STREAM": False, **wide_row}, wide_backward.WARPS,
        ),
        "norm_gain_wide": Case(
            wide_backward.wide_gain_kernel, f"*bf16 *bf16 *bf16 *fp32 *fp32 {sizes}", {"GATED": True, **wide_row},
            wide_backward.WARPS,
        ),
        "pack2": Case(ternary_pack.pack2_kernel, "*fp32 *fp32 *u8 i i i", packing, fusion=False),
        "unpack2": Case(ternary_pack.unpack2_kernel, "*u8 *i8 i i i", packing),
        "pack3": Case(ternary_pack.pack3_kernel, "*fp32 *fp32 *u8 i i i i", packing, fusion=False),
        "unpack3": Case(ternary_pack.unpack3_kernel, "*u8 *i8 i i i i", packing),
        "ternary_gemm": Case(ternary_matmul.ternary_gemm_kernel, gemm_types, tile(gemm), gemm.warps, gemm.stages),
        "ternary_gemm_m16": Case(ternary_matmul.ternary_gemm_kernel, gemm_types, tile(small), small.warps, small.stages),  # noqa: E501
        "ternary_gemv": Case(
            ternary_gemv.ternary_gemv_kernel, gemv_types, {"TOKENS": 1, **gemv}, gemv_warps, only_cuda=asm
        ),
        "ternary_gemv_m4": Case(
            ternary_gemv.ternary_gemv_kernel, gemv_types.replace(" 1 ", " i "), {"TOKENS": 4, **gemv}, gemv_warps,
            only_cuda=asm,
        ),
        "grad_input": Case(
            ternary_linear.grad_input_kernel, "*bf16 *u8 *fp32 *bf16 i i i i i i", {**dot, **tile(back)}, back.warps,
            back.stages,
        ),
        "grad_weight": Case(
            ternary_linear.grad_weight_kernel, "*bf16 *i8 *fp32 *fp32 i i i i i i", {**dot, **weight_tile}, back.warps,
            back.stages,
        ),
        "pack1": Case(xnor_matmul.pack1_kernel, "*bf16 *i32 i i", {"BLOCK": xnor_matmul.PACK_BLOCK}),
        "xnor_count": Case(
            xnor_matmul.xnor_count_kernel, "*i32 *i32 *fp32 *fp32 *bf16 i i i i i",
            {"BLOCK_N": xnor_matmul.COUNT_N, "BLOCK_W": xnor_matmul.COUNT_W},
        ),
        "xnor_gemm": Case(
            xnor_matmul.xnor_gemm_kernel, "*u8 *u8 *fp32 *fp32 *bf16 i i i i i i", tile(binary), binary.warps,
            binary.stages,
        ),
        "scan_forward": Case(
            mlgru_scan.scan_forward_kernel, "*fp32 *fp32 *fp32 *i1 *fp32 i i i i i i", scan, scan_warps
        ),
        "scan_backward": Case(
            mlgru_scan.scan_backward_kernel, "*fp32 *fp32 *fp32 *fp32 *i1 *fp32 *fp32 *fp32 i i i i i i", scan,
            scan_warps,
        ),
    }  # fmt: skip


CASES = _cases()


def source(case: Case, constants: dict[str, Any]) -> ASTSource:
    """The kernel with its types: `i` a 32-bit size (a multiple of 16), `f` fp32, `1` the constant one."""
    names = [name for name in case.kernel.arg_names if name not in constants]
    types = case.types.split()
    if len(names) != len(types):
        raise ValueError(f"{case.kernel.__name__}: {len(types)} types for arguments {', '.join(names)}")
    short = {"i": "i32", "f": "fp32", "1": "constexpr"}
    signature = {name: short.get(kind, kind) for name, kind in zip(names, types, strict=True)}
    signature |= dict.fromkeys(constants, "constexpr")
    fixed = constants | {name: 1 for name, kind in zip(names, types, strict=True) if kind == "1"}
    order = case.kernel.arg_names
    # a real launch tells the compiler which pointers and sizes are multiples of 16
    aligned = {
        (order.index(name),): [["tt.divisibility", 16]]
        for name, kind in zip(names, types, strict=True)
        if kind == "i" or kind.startswith("*")
    }
    return ASTSource(case.kernel, {name: signature[name] for name in order}, fixed, aligned)


def build(name: str, target: str) -> Facts:
    """Compile a case for a target of `TARGETS`."""
    case, gpu = CASES[name], TARGETS[target]
    constants = case.constants | (case.only_cuda if gpu.backend == "cuda" else {})
    options: dict[str, Any] = {"num_warps": case.warps, "num_stages": case.stages}
    options["enable_fp_fusion"] = case.fusion
    made = triton.compile(source(case, constants), target=gpu, options=options)
    threads = case.warps * gpu.warp_size
    if gpu.backend == "hip":
        text = made.asm["amdgcn"]
        count = {key: int(value) for key, value in re.findall(r"\.(\w+):\s+(\d+)", text)}
        opcodes = Counter(re.findall(r"^\s+([vs]_\w+|ds_\w+|global_\w+|buffer_\w+)", text, re.MULTILINE))
        spilled = count["private_segment_fixed_size"]
        return Facts(count["vgpr_count"], spilled, made.metadata.shared, threads, text, opcodes)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(made.asm["cubin"])
        usage = tool("cuobjdump", "-res-usage", str(cubin))
        listing = tool("cuobjdump", "-sass", str(cubin))
    found = {key: int(value) for key, value in _FIELD.findall(usage)}
    spilled = found["STACK"] + found["LOCAL"]
    return Facts(found["REG"], spilled, made.metadata.shared, threads, made.asm["ptx"], Counter(_SASS.findall(listing)))


def tool(name: str, *arguments: str) -> str:
    """Output of a program that comes with triton, or of the one on the path."""
    bundled = BINARIES / name
    program = str(bundled) if bundled.exists() else shutil.which(name)
    if program is None:
        raise FileNotFoundError(f"{name}: neither in {BINARIES} nor on the path")
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout
