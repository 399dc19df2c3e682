"""Registers, occupancy, bytes and instructions of every kernel as compiled: what can be known without a GPU.

python benchmarks/kernel_compile_report.py [--targets cuda90 gfx942] [--out benchmarks/results/kernels_compiled.csv]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gpu_kernels import Case, work
from tables import line, write_csv

from llmnas.triton_kernels import compiled

RESULTS = Path(__file__).parent / "results" / "kernels_compiled.csv"
PRODUCTS = ("IMMA", "HMMA", "WGMMA", "IGMMA", "HGMMA", "UTCIMMA", "UTCHMMA", "UTCQMMA", "IDP", "POPC")

SIZE = 4096  # tokens, features, outputs, time steps and channels where no other number is named
MATRIX = SIZE * SIZE


def least_bytes(kernel: str) -> int:
    """Bytes that must move once from or to memory: bf16 tokens, fp32 states and latent weights.

    Those of the benchmark's cases are counted in the interpreter by a test; what is added here is what the compiled
    case has more than the benchmark's: a residual stream, document starts and states.
    """
    tokens = {"ternary_gemm_m16": 16, "ternary_gemv": 1, "ternary_gemv_m4": 4, "xnor_count": 1, "pack2": 1, "pack3": 1}
    names = {"ternary_gemm": "ternary_matmul", "ternary_gemv": "ternary_matmul", "xnor": "xnor_matmul"}
    rest = {"unpack2": MATRIX // 4 + MATRIX, "unpack3": 16 * SIZE * -(-SIZE // 80) + MATRIX}
    rest["pack1"] = 2 * MATRIX + MATRIX // 8
    # of wide rows: what one of the two kernels reads and writes, gain and r included
    rest |= {"rmsnorm_backward_wide": 8 * MATRIX + 8 * SIZE, "swiglu_norm_backward_wide": 10 * MATRIX + 8 * SIZE}
    rest["norm_gain_wide"] = 6 * MATRIX + 8 * SIZE
    if kernel in rest:
        return rest[kernel]
    more = {
        "rmsnorm_quant": 4 * MATRIX, "rmsnorm_backward": 2 * MATRIX,
        "scan_forward": SIZE + 4 * SIZE, "scan_backward": SIZE + 8 * SIZE,
    }  # fmt: skip
    known = next((name for start, name in names.items() if kernel.startswith(start)), kernel)
    return work(Case(known, tokens.get(kernel, SIZE), SIZE, SIZE)).bytes + more.get(kernel, 0)


def row(kernel: str, target: str) -> dict[str, object]:
    """One line of the table."""
    facts = compiled.build(kernel, target)
    unit = compiled.UNITS[target]
    machine = facts.machine
    products = sum(
        count for name, count in machine.items() if name in PRODUCTS or name.startswith(("v_mfma", "v_dot", "v_bcnt"))
    )
    memory = sum(
        count
        for name, count in machine.items()
        if name in {"LDG", "STG", "LDGSTS", "UTMALDG"} or name.startswith(("global_", "buffer_"))
    )
    return {
        "kernel": kernel,
        "target": target,
        "threads": facts.threads,
        "registers": facts.registers,
        "spilled_bytes": facts.spilled,
        "shared_bytes": facts.shared,
        "programs_per_sm": facts.programs(unit),
        "occupancy": round(facts.occupancy(unit), 3),
        "instructions": sum(machine.values()),
        "product_instructions": products,
        "memory_instructions": memory,
        "bytes_moved": least_bytes(kernel),
    }


def page(rows: Iterable[Mapping[str, Any]], target: str = "cuda90", bandwidth: float = 3350e9) -> list[str]:
    """Lines of the table in docs/kernels.md: one target, with the least time that the bytes take at a bandwidth."""
    lines = [
        "| kernel | registers | occupancy | instructions | of products | of memory | MB | least us |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cells in rows:
        if cells["target"] == target:
            moved = int(cells["bytes_moved"])
            figures = [cells[name] for name in ("registers", "occupancy", "instructions", "product_instructions")]
            figures += [cells["memory_instructions"], f"{moved / 1e6:.1f}", f"{1e6 * moved / bandwidth:.1f}"]
            lines.append(f"| {cells['kernel']} | {' | '.join(map(str, figures))} |")
    return lines


def main() -> None:
    """Compile every case and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=list(compiled.TARGETS), default=list(compiled.TARGETS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = []
    for kernel in compiled.CASES:
        for target in arguments.targets:
            rows.append(row(kernel, target))
            print(line(rows[-1]), flush=True)
    write_csv(arguments.out, rows)


if __name__ == "__main__":
    main()
