"""Registers, occupancy, bytes and instructions of every kernel as compiled: what can be known without a GPU.

python benchmarks/kernel_compile_report.py [--targets cuda90 gfx942] [--out benchmarks/results/kernels_compiled.csv]
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

from llmnas.files import write_text
from llmnas.triton_kernels import compiled

RESULTS = Path(__file__).parent / "results" / "kernels_compiled.csv"
M, N, K = 4096, 4096, 4096
T, W = 4096, 4096
# NVIDIA: registers and shared memory (bytes) of a multiprocessor; all hold 2048 threads and 65536 registers
SHARED = {"cuda80": 163 * 1024, "cuda90": 227 * 1024, "cuda100": 227 * 1024}
PRODUCTS = ("IMMA", "HMMA", "WGMMA", "IGMMA", "HGMMA", "UTCIMMA", "UTCHMMA", "UTCQMMA", "IDP", "POPC")

# bytes that must move once from or to memory, bf16 tokens, at M = N = K = T = W = 4096 (M = 1, 4 and 16 where named)
BYTES = {
    "act_quant": M * K * 3 + M * 4,
    "rmsnorm_quant": M * K * 7 + M * 8 + K * 4,
    "rmsnorm_backward": M * K * 8 + M * 4 + K * 8,
    "swiglu_norm_quant": M * K * 5 + M * 8 + K * 4,
    "swiglu_norm_backward": M * K * 10 + M * 4 + K * 8,
    "pack2": N * K * 4 + N * K // 4,
    "unpack2": N * K // 4 + N * K,
    "pack3": N * K * 4 + N * K // 5,
    "unpack3": N * K // 5 + N * K,
    "ternary_gemm": M * K + N * K // 4 + M * N * 2,
    "ternary_gemm_m16": 16 * K + N * K // 4 + 16 * N * 2,
    "ternary_gemv": K + N * K // 4 + N * 2,
    "ternary_gemv_m4": 4 * K + N * K // 4 + 4 * N * 2,
    "grad_input": M * N * 2 + N * K // 4 + M * K * 2,
    "grad_weight": M * N * 2 + M * K + N * K * 4,
    "pack1": M * K * 2 + M * K // 8,
    "xnor_count": K // 8 + N * K // 8 + N * 2,
    "xnor_gemm": M * K // 8 + N * K // 8 + M * N * 2,
    "scan_forward": 3 * T * W * 4,
    "scan_backward": 5 * T * W * 4,
}


def row(kernel: str, target: str) -> dict[str, object]:
    """One line of the table."""
    facts = compiled.build(kernel, target)
    programs = facts.programs_per_sm(shared=SHARED[target]) if target in SHARED else None
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
        "programs_per_sm": "" if programs is None else programs,
        "occupancy": "" if programs is None else round(programs * facts.threads / 2048, 3),
        "instructions": sum(machine.values()),
        "product_instructions": products,
        "memory_instructions": memory,
        "bytes_moved": BYTES[kernel],
    }


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
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items() if value != ""), flush=True)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(arguments.out, stream.getvalue())
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
