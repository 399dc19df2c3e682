"""The cases of benchmarks/gpu_kernels.py at small sizes: kernels, float64 references and bytes, before a GPU sees them.

Bytes are counted where the interpreter loads and stores: every address once, as if a cache held everything.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from triton.runtime.interpreter import InterpreterBuilder

from llmnas.triton_kernels.rmsnorm_quant import PROGRAMS

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))

import gpu_cases
from gpu_kernels import Case, cases, error_of, work

SMALL = [
    Case("ternary_matmul", 1, 33, 192),
    Case("ternary_matmul", 4, 33, 64),
    Case("ternary_matmul", 16, 63, 128),
    Case("ternary_matmul", 70, 7, 192),
    Case("xnor_matmul", 1, 63, 96),
    Case("xnor_matmul", 7, 63, 96),
    Case("scan_forward", 2 * 33, 1, 17, 2),
    Case("scan_backward", 2 * 33, 1, 17, 2),
    *(Case(name, 7, 1, 63) for name in ("act_quant", "rmsnorm_quant", "swiglu_norm_quant")),
    *(Case(name, 7, 1, 63) for name in ("rmsnorm_backward", "swiglu_norm_backward")),
    *(Case(name, 2, 1, 8300) for name in ("rmsnorm_backward", "swiglu_norm_backward")),
    *(Case(name, 1, 7, 192) for name in ("pack2", "pack3")),
    *(Case(name, 63, 7, 192) for name in ("grad_input", "grad_weight")),
]


@pytest.fixture(autouse=True)
def guarded_memory(monkeypatch):
    """Torch allocates the float64 references too; every case is on the CPU."""
    monkeypatch.setattr(gpu_cases, "DEVICE", "cpu")


@pytest.fixture
def touched(monkeypatch):
    """Bytes loaded and stored since the beginning, by address."""
    seen = {"load": [], "store": []}
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def addresses(way, pointers, mask, size):
        first = np.broadcast_to(pointers.data, mask.data.shape)[mask.data.astype(bool)]
        seen[way].append((first[:, None] + np.arange(size, dtype=np.uint64)).ravel())

    def counted_load(self, pointers, mask, *rest):
        found = load(self, pointers, mask, *rest)
        addresses("load", pointers, mask, found.data.itemsize)
        return found

    def counted_store(self, pointers, value, mask, *rest):
        addresses("store", pointers, mask, value.data.itemsize)
        return store(self, pointers, value, mask, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counted_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counted_store)

    def count(call):
        for found in seen.values():
            found.clear()
        call()
        return sum(len(np.unique(np.concatenate(found))) for found in seen.values() if found)

    return count


def test_every_kernel_of_the_benchmark_is_here():
    assert {case.kernel for case in SMALL} == {case.kernel for case in cases()}


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_a_case_is_right_and_moves_the_bytes_that_it_says(case, touched):
    ready = gpu_cases.prepare(case)
    error, allowed = error_of(ready)
    # the interpreter cuts fp32 to bf16, a GPU rounds: half of this error
    assert error <= (2 * allowed if allowed == gpu_cases.BF16 else allowed)
    assert all(wanted.dtype == torch.float64 for wanted in ready.wanted)
    # partial sums of the gain's gradient: one row a program, summed by torch
    partial = 4 * case.k * (min(case.m, PROGRAMS) - 1) if case.kernel.endswith("norm_backward") else 0
    assert touched(ready.call) == work(case).bytes + partial


def test_an_alternative_that_does_not_work_is_left_out(capsys):
    assert gpu_cases.optional("gemlite", lambda: 1 / 0) == {}
    assert "gemlite: left out (ZeroDivisionError" in capsys.readouterr().out
    assert gpu_cases.optional("fla", lambda: 3) == {"fla": 3}
