"""Every kernel on a GPU: checked against float64, timed against what a lab would use instead, in one call.

    python benchmarks/gpu_kernels.py [--minutes 8] [--out benchmarks/results/gpu_kernels.csv]

First each kernel is compared with its plain torch twin computed in float64. Then it is timed (CUDA events, caches
flushed between calls) beside cuBLAS bf16, torch, and Liger, gemlite and fla where they are installed; the speedup is
over the first alternative named (cuBLAS for products), the others' times stand in a column of their own. The share of
the roofline is the least time that the bytes or the operations take, at the bandwidth and the matrix rate measured on
this very device, over the time taken; `launch_ms`, of a kernel of next to no work, is the least that any can take.

The CSV is written after every case. A case that fails costs only itself, also where the GPU then takes no more work
from the process: a new one goes on. Where time is short the cases that are left are named and left out. Without a GPU
it says so and exits 3.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tables import csv_text, line
from torch import Tensor

from llmnas.files import write_text

RESULTS = Path(__file__).parent / "results" / "gpu_kernels.csv"
NO_GPU = 3
COLUMNS = (
    "device", "kernel", "m", "n", "k", "ms", "launch_ms", "bytes", "operations", "gb_per_s", "roofline_share",
    "baseline", "baseline_ms", "speedup", "others", "max_error", "allowed_error",
)  # fmt: skip
TEXTS = {"device", "kernel", "baseline", "others"}
SHAPES = ((2048, 2048), (4096, 4096), (8192, 8192), (11008, 4096), (28672, 8192))
DECODE, PREFILL = (1, 4, 16), (512, 4096)
SCANS = ((8, 2048, 2048), (1, 8192, 4096))
ROWS = ((4096, 4096), (4096, 8192), (4096, 14336))


@dataclass(frozen=True)
class Case:
    """One kernel at one size: m tokens, k inputs, n outputs (a scan: m time steps in all, k channels)."""

    kernel: str
    m: int
    n: int
    k: int
    batch: int = 1


@dataclass(frozen=True)
class Device:
    """What was measured of the device."""

    name: str
    bytes_per_second: float
    operations_per_second: float  # dense bf16
    launch_ms: float = 0.0  # of a kernel that does next to nothing, timed as all others are


@dataclass(frozen=True)
class Work:
    """What a case has to do at least."""

    bytes: int
    operations: int
    rate: float = 1.0  # of its operations over dense bf16's, on tensor cores


def cases() -> Iterator[Case]:
    """All of them, what the aims are about first: decoding, reading, the scan, then the element-wise ones."""
    for m in DECODE:
        for n, k in SHAPES:
            yield Case("ternary_matmul", m, n, k)
            if m == 1:
                yield Case("xnor_matmul", m, n, k)
    for m in PREFILL:
        for n, k in SHAPES:
            yield Case("ternary_matmul", m, n, k)
    for batch, time_steps, width in SCANS:
        yield Case("scan_forward", batch * time_steps, 1, width, batch)
        yield Case("scan_backward", batch * time_steps, 1, width, batch)
    for m, k in ROWS:
        for kernel in ("act_quant", "rmsnorm_quant", "swiglu_norm_quant", "rmsnorm_backward", "swiglu_norm_backward"):
            yield Case(kernel, m, 1, k)
    for n, k in SHAPES[:3]:
        yield Case("pack2", 1, n, k)
        yield Case("pack3", 1, n, k)
        yield Case("grad_input", 4096, n, k)
        yield Case("grad_weight", 4096, n, k)
        yield Case("xnor_matmul", 4096, n, k)


def work(case: Case) -> Work:
    """Bytes that must cross memory once (bf16 tokens, fp32 latent weights and states) and operations of products."""
    m, n, k = case.m, case.n, case.k
    product = 2 * m * n * k
    return {
        "ternary_matmul": Work(m * k + 4 * m + n * k // 4 + 4 + 2 * m * n, product, 2.0),
        "xnor_matmul": Work(m * k // 8 + n * k // 8 + 4 * (m + n) + 2 * m * n, product, 2.0),
        "scan_forward": Work(3 * 4 * m * k, 0),
        "scan_backward": Work(5 * 4 * m * k - 4 * case.batch * k, 0),  # the last state is not read
        "act_quant": Work(3 * m * k + 4 * m, 0),
        "rmsnorm_quant": Work(3 * m * k + 8 * m + 4 * k, 0),
        "swiglu_norm_quant": Work(5 * m * k + 8 * m + 4 * k, 0),
        "rmsnorm_backward": Work(6 * m * k + 4 * m + 8 * k, 0),
        "swiglu_norm_backward": Work(10 * m * k + 4 * m + 8 * k, 0),
        "pack2": Work(4 * n * k + n * k // 4 + 4, 0),
        "pack3": Work(4 * n * k + 16 * n * -(-k // 80) + 4, 0),
        "grad_input": Work(2 * m * n + n * k // 4 + 4 + 2 * m * k, product),
        "grad_weight": Work(2 * m * n + m * k + 4 * m + 4 * n * k, product),
    }[case.kernel]


def least_seconds(case: Case, device: Device) -> float:
    """The roofline: the longer of moving the bytes and of doing the operations."""
    todo = work(case)
    return max(todo.bytes / device.bytes_per_second, todo.operations / (todo.rate * device.operations_per_second))


def row(
    case: Case, device: Device, ms: float, baseline: tuple[str, float] | None, error: float, allowed: float,
    others: str = "",
) -> dict[str, Any]:  # fmt: skip
    """One line of the table."""
    todo = work(case)
    return {
        "device": device.name, "kernel": case.kernel, "m": case.m, "n": case.n, "k": case.k, "ms": round(ms, 5),
        "launch_ms": round(device.launch_ms, 5), "bytes": todo.bytes, "operations": todo.operations,
        "gb_per_s": round(todo.bytes / ms / 1e6, 1),
        "roofline_share": round(1e3 * least_seconds(case, device) / ms, 3),
        "baseline": baseline[0] if baseline else "", "baseline_ms": round(baseline[1], 5) if baseline else "",
        "speedup": round(baseline[1] / ms, 2) if baseline else "", "others": others, "max_error": f"{error:.2e}",
        "allowed_error": f"{allowed:.2e}",
    }  # fmt: skip


def earlier(out: Path) -> list[dict[str, Any]]:
    """The rows of a table that another process has begun, as `row` makes them."""
    exact = TEXTS | {"max_error", "allowed_error"}
    with out.open(newline="") as file:
        return [
            {name: value if name in exact or value == "" else _number(value) for name, value in cells.items()}
            for cells in csv.DictReader(file)
        ]


def _number(text: str) -> float:
    return int(text) if text.isdecimal() else float(text)


@dataclass(frozen=True)
class Ready:
    """A case with its tensors: the call to time, what it gave and should have given, and the alternatives."""

    call: Callable[[], Any]
    found: tuple[Tensor, ...]
    wanted: tuple[Tensor, ...]  # float64, from the same tensors
    tolerance: float  # of the largest wanted value
    baselines: dict[str, Callable[[], Any]]


def error_of(ready: Ready) -> tuple[float, float]:
    """(largest difference over all outputs as a share of the output's largest value, what is allowed).

    NaN where an output, whichever, holds one; infinite where its shape is wrong.
    """
    shares = [
        (found.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30)
        if found.shape == wanted.shape
        else torch.tensor(torch.inf)
        for found, wanted in zip(ready.found, ready.wanted, strict=True)
    ]
    # torch's maximum keeps a NaN, Python's loses one that is not the first
    return float(torch.stack([share.double().cpu() for share in shares]).max()), ready.tolerance


def installed(name: str) -> bool:
    """Whether a library of the baselines is there."""
    return importlib.util.find_spec(name) is not None


def aims(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What was aimed at on an H100, each beside what was found; cases that are not among the rows are left out."""
    found = []
    for cells in rows:
        kernel, m, square = cells["kernel"], cells["m"], cells["n"] == cells["k"] in {4096, 8192}
        wanted: dict[str, float] = {}
        if kernel == "ternary_matmul" and m in DECODE and square:
            wanted = {"speedup": 3.0, "roofline_share": 0.55}
        elif kernel == "ternary_matmul" and m in PREFILL and square:
            wanted = {"speedup": 1.3}
        elif kernel.startswith("scan"):
            wanted = {"roofline_share": 0.7}
        for name, aim in wanted.items():
            verdict = "met" if cells[name] != "" and cells[name] >= aim else "MISSED"
            found.append(f"{kernel} m {m} n {cells['n']} k {cells['k']}: {name} {cells[name]}, aim {aim}: {verdict}")
    return found


def measure(case: Case, device: Device) -> dict[str, Any]:
    """Check and time one case."""
    import gpu_cases  # needs Triton's driver

    ready = gpu_cases.prepare(case)
    error, allowed = error_of(ready)
    own = gpu_cases.milliseconds(ready.call)
    times = {}
    for name, call in ready.baselines.items():
        times |= gpu_cases.optional(name, lambda call=call: gpu_cases.milliseconds(call))
    named = list(times.items())
    others = "; ".join(f"{name} {ms:.5f} ms" for name, ms in named[1:])
    return row(case, device, own, named[0] if named else None, error, allowed, others)


def lost() -> bool:
    """Whether the GPU takes no more work from this process, as after an access outside of its memory."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def run(device: Device, end: float, out: Path, begin: int = 0) -> int:
    """Every case from number `begin` on that fits before `end`; 1 where one is wrong or fails."""
    rows: list[dict[str, Any]] = earlier(out) if begin and out.exists() else []
    wrong: list[Case] = []
    left_out: list[Case] = []
    for number, case in enumerate(cases()):
        if number < begin:
            continue
        if time.monotonic() > end:
            left_out.append(case)
            continue
        try:
            rows.append(measure(case, device))
        except Exception as error:  # noqa: BLE001 (the other cases of a rare call to a GPU must not be lost with it)
            print(f"FAILED {case}: {type(error).__name__}: {error}", flush=True)
            wrong.append(case)
            if lost():
                return go_on(end, out, number + 1, wrong)
            continue
        if not float(rows[-1]["max_error"]) <= float(rows[-1]["allowed_error"]):
            wrong.append(case)
        write_text(out, csv_text(rows, COLUMNS))
        print(line({name: value for name, value in rows[-1].items() if name != "device"}), flush=True)
    print(*aims(rows), sep="\n")
    if rows:
        print(f"wrote {out}")
    for name, found in (("WRONG", wrong), ("left out for want of time", left_out)):
        if found:
            print(f"{name}: {', '.join(map(str, found))}")
    return 1 if wrong else 0


def go_on(end: float, out: Path, begin: int, wrong: Sequence[Case]) -> int:
    """The cases from number `begin` on in a process of their own, which the GPU takes work from."""
    print("the GPU takes no more work from this process: going on in a new one", flush=True)
    left = max(0.0, (end - time.monotonic()) / 60)
    subprocess.call([
        sys.executable, __file__, "--minutes", f"{left:.3f}", "--out", str(out), "--begin", str(begin)
    ])  # fmt: skip
    print(f"WRONG before that: {', '.join(map(str, wrong))}")
    return 1


def main() -> int:
    """Check, time, print and write; 1 where a kernel is wrong, 3 without a GPU."""
    begin = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=7.5, help="cases that do not fit are left out, and named")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--begin", type=int, default=0, help="go on with the table in --out at the case of this number")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_kernels.py: no GPU here: nothing was checked and nothing was measured", file=sys.stderr)
        return NO_GPU
    import gpu_cases  # needs Triton's driver

    device = gpu_cases.measure_device()
    print(f"{device.name}: {device.bytes_per_second / 1e9:.0f} GB/s copied, "
          f"{device.operations_per_second / 1e12:.0f} TFLOP/s bf16, "
          f"at least {1e3 * device.launch_ms:.1f} us a launch", flush=True)  # fmt: skip
    return run(device, begin + 60 * arguments.minutes, arguments.out, arguments.begin)


if __name__ == "__main__":
    sys.exit(main())
