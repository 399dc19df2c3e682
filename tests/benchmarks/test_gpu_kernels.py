"""The GPU benchmark without a GPU: its cases, their costs by hand, its table, and that it says when it cannot run."""

import csv
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_benchmarks import ENVIRONMENT, FOLDER, load


@pytest.fixture(scope="module")
def gpu():
    return load("gpu_kernels")


def test_without_a_gpu_it_says_so_and_exits_3(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    out = tmp_path / "gpu.csv"
    command = [sys.executable, str(FOLDER / "gpu_kernels.py"), "--out", str(out)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert len(done.stderr.strip().splitlines()) == 1
    assert "no GPU" in done.stderr
    assert not out.exists()


def test_the_cases_are_the_shapes_of_language_models(gpu):
    cases = list(gpu.cases())
    assert len(set(cases)) == len(cases)
    ternary = {(case.m, case.n, case.k) for case in cases if case.kernel == "ternary_matmul"}
    assert {m for m, _, _ in ternary} == {1, 4, 16, 512, 4096}
    for shape in ((2048, 2048), (4096, 4096), (8192, 8192), (11008, 4096), (28672, 8192)):
        assert all((m, *shape) in ternary for m in (1, 4, 16, 512, 4096))
    assert all(gpu.work(case).bytes > 0 for case in cases)


def test_every_kernel_that_is_compiled_is_timed(gpu):
    """Unpacking and sign packing are parts of others' preparation; the gain's kernel is part of the wide backward."""
    from llmnas.triton_kernels.compiled import CASES
    from llmnas.triton_kernels.wide_backward import WIDEST

    names = {
        name.replace("ternary_gemm_m16", "ternary_matmul").replace("ternary_gemm", "ternary_matmul")
        .replace("ternary_gemv_m4", "ternary_matmul").replace("ternary_gemv", "ternary_matmul")
        .replace("xnor_count", "xnor_matmul").replace("xnor_gemm", "xnor_matmul").removesuffix("_wide")
        for name in CASES
    }  # fmt: skip
    assert names - {case.kernel for case in gpu.cases()} == {"unpack2", "unpack3", "pack1", "norm_gain"}
    assert any(case.kernel == "swiglu_norm_backward" and case.k > WIDEST for case in gpu.cases())


def test_bytes_and_roofline_by_hand(gpu):
    decode = gpu.Case("ternary_matmul", 1, 4096, 4096)
    # int8 token, its scale, 2 bits a weight, theirs, bf16 outputs
    assert gpu.work(decode) == gpu.Work(4096 + 4 + 4096 * 4096 // 4 + 4 + 2 * 4096, 2 * 4096 * 4096, 2.0)
    device = gpu.Device("test", 1e12, 1e15)
    # bound by memory: 4.2 MB at 1 TB/s
    assert gpu.least_seconds(decode, device) == pytest.approx(4206600 / 1e12)
    prefill = gpu.Case("ternary_matmul", 4096, 4096, 4096)
    # bound by products, at twice the rate of bf16
    assert gpu.least_seconds(prefill, device) == pytest.approx(2 * 4096**3 / 2e15)
    scan = gpu.Case("scan_forward", 16384, 1, 2048, 8)
    assert gpu.work(scan).bytes == 3 * 4 * 16384 * 2048


def test_a_row_and_the_table(gpu):
    device, case = gpu.Device("test", 1e12, 1e15), gpu.Case("ternary_matmul", 1, 4096, 4096)
    line = gpu.row(case, device, 0.008, ("cuBLAS bf16", 0.04), 1e-3, 4e-3)
    assert line["speedup"] == 5.0
    assert line["roofline_share"] == pytest.approx(4206600 / 1e12 / 8e-6, abs=1e-3)
    assert gpu.row(case, device, 0.008, None, 0.0, 0.0)["speedup"] == ""
    found = list(csv.DictReader(io.StringIO(gpu.csv_text([line], gpu.COLUMNS))))
    assert list(found[0]) == list(gpu.COLUMNS)
    assert found[0]["device"] == "test"


def test_the_speedup_is_over_the_alternative_that_the_aim_names(gpu, monkeypatch):
    """cuBLAS for products: a faster library does not take its place, but its time is kept."""
    case, one = gpu.Case("ternary_matmul", 1, 4096, 4096), torch.ones(1)
    ready = gpu.Ready(lambda: 0.01, (one,), (one.double(),), 1e-3, {"cuBLAS bf16": lambda: 0.04, "other": lambda: 0.02})
    cases = SimpleNamespace(
        prepare=lambda case: ready, milliseconds=lambda call: call(), optional=lambda name, make: {name: make()}
    )
    monkeypatch.setitem(sys.modules, "gpu_cases", cases)
    line = gpu.measure(case, gpu.Device("test", 1e12, 1e15, 0.002))
    assert (line["baseline"], line["speedup"], line["others"]) == ("cuBLAS bf16", 4.0, "other 0.02000 ms")
    assert line["launch_ms"] == 0.002
    ready.baselines.clear()
    line = gpu.measure(case, gpu.Device("test", 1e12, 1e15))
    assert (line["baseline"], line["speedup"], line["others"]) == ("", "", "")


def test_a_wrong_result_is_seen(gpu):
    right = torch.tensor([1.0, -2.0])
    ready = gpu.Ready(lambda: None, (right, right + 0.1), (right.double(), right.double()), 1e-3, {})
    error, allowed = gpu.error_of(ready)
    assert error == pytest.approx(0.05, rel=1e-4)
    assert allowed == 1e-3


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_nan_in_any_output_and_a_wrong_shape_are_seen(gpu, place):
    right = torch.tensor([1.0, -2.0])
    for bad in (torch.tensor([1.0, torch.nan]), torch.full((2,), torch.inf), right[:1]):
        found = [right, right, right]
        found[place] = bad
        error, allowed = gpu.error_of(gpu.Ready(lambda: None, tuple(found), (right.double(),) * 3, 1e-3, {}))
        assert not error <= allowed


def test_aims_are_held_against_what_was_found(gpu):
    device = gpu.Device("test", 1e12, 1e15)
    case, slow = gpu.Case("ternary_matmul", 1, 4096, 4096), gpu.Case("ternary_matmul", 512, 8192, 8192)
    found = gpu.aims([
        gpu.row(case, device, 0.008, ("cuBLAS bf16", 0.04), 0.0, 0.0),
        gpu.row(slow, device, 1.0, ("cuBLAS bf16", 1.0), 0.0, 0.0),
        gpu.row(gpu.Case("act_quant", 4096, 1, 4096), device, 1.0, None, 0.0, 0.0),
    ])  # fmt: skip
    assert found == [
        "ternary_matmul m 1 n 4096 k 4096: speedup 5.0, aim 3.0: met",
        "ternary_matmul m 1 n 4096 k 4096: roofline_share 0.526, aim 0.55: MISSED",
        "ternary_matmul m 512 n 8192 k 8192: speedup 1.0, aim 1.3: MISSED",
    ]


def test_a_case_that_fails_costs_only_itself(gpu, monkeypatch, tmp_path, capsys):
    """A GPU is rare: what was measured before and after an error is in the table."""
    device, good = gpu.Device("test", 1e12, 1e15), gpu.Case("act_quant", 1, 1, 64)
    bad, wrong, late = (replace(good, m=m) for m in (2, 3, 4))
    clock = iter([0.0, 0.0, 0.0, 9.0])
    monkeypatch.setattr(gpu, "cases", lambda: iter([bad, good, wrong, late]))
    monkeypatch.setattr(gpu.time, "monotonic", lambda: next(clock))

    def measure(case, device):
        if case == bad:
            raise RuntimeError("out of resource: shared memory")
        return gpu.row(case, device, 1.0, None, 0.5 if case == wrong else 0.0, 0.1)

    monkeypatch.setattr(gpu, "measure", measure)
    monkeypatch.setattr(gpu, "lost", lambda: False)
    assert gpu.run(device, 5.0, tmp_path / "gpu.csv") == 1
    assert [row["m"] for row in csv.DictReader((tmp_path / "gpu.csv").open())] == ["1", "3"]
    said = capsys.readouterr().out
    assert f"FAILED {bad}: RuntimeError: out of resource" in said
    assert f"WRONG: {bad}, {wrong}" in said
    assert f"left out for want of time: {late}" in said


def test_a_process_that_the_gpu_refuses_is_followed_by_another(gpu, monkeypatch, tmp_path, capsys):
    """An access outside of memory ends all work of the process; the cases behind it are measured all the same."""
    device, out = gpu.Device("test", 1e12, 1e15), tmp_path / "gpu.csv"
    many = [gpu.Case("act_quant", m, 1, 64) for m in (1, 2, 3, 4)]
    tried, dead = [], [False]

    def measure(case, device):
        tried.append(case.m)
        dead[0] = dead[0] or case.m == 2
        if dead[0]:
            raise RuntimeError("an illegal memory access was encountered")
        return gpu.row(case, device, 1.0, ("torch", 2.0), 0.0, 0.1)

    def call(command):
        dead[0] = False
        begin = int(command[command.index("--begin") + 1])
        assert gpu.run(device, gpu.time.monotonic() + 60, Path(command[command.index("--out") + 1]), begin) == 0

    for name, fake in (("cases", lambda: iter(many)), ("measure", measure), ("lost", lambda: dead[0])):
        monkeypatch.setattr(gpu, name, fake)
    monkeypatch.setattr(gpu.subprocess, "call", call)
    assert gpu.run(device, gpu.time.monotonic() + 60, out) == 1
    assert tried == [1, 2, 3, 4]
    assert [row["m"] for row in csv.DictReader(out.open())] == ["1", "3", "4"]
    assert gpu.earlier(out) == [gpu.row(case, device, 1.0, ("torch", 2.0), 0.0, 0.1) for case in many if case.m != 2]
    assert f"WRONG before that: {many[1]}" in capsys.readouterr().out


def test_the_page_shows_the_table_of_compiled_kernels():
    """Occupancy, bytes and instructions, all from the CSV; it names every kernel for every target."""
    from llmnas.triton_kernels.compiled import CASES, TARGETS

    report = load("kernel_compile_report")
    rows = list(csv.DictReader(report.RESULTS.open()))
    assert {(row["kernel"], row["target"]) for row in rows} == {(name, target) for name in CASES for target in TARGETS}
    assert all(int(row["bytes_moved"]) == report.least_bytes(row["kernel"]) for row in rows)
    assert "\n".join(report.page(rows)) in (FOLDER.parent / "docs" / "kernels.md").read_text()
