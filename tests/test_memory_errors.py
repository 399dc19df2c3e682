"""Out of memory is one line: what asked for how much, and what to lower."""

import numpy as np
import pytest
import torch

from llmnas.errors import RunError
from llmnas.memory import asked_for, asking
from llmnas.process import run_process

HUGE = 1 << 50


def of(work):
    with pytest.raises((MemoryError, RuntimeError)) as error:
        work()
    return error.value


@pytest.mark.parametrize(
    ("work", "amount"),
    [
        (lambda: torch.empty(HUGE, dtype=torch.uint8), f"{HUGE:,} bytes"),
        (lambda: np.empty(HUGE, dtype=np.uint8), "1.00 PiB"),
        (lambda: bytearray(HUGE), "memory"),
    ],
    ids=["torch", "numpy", "python"],
)
def test_real_allocators_are_understood(work, amount):
    assert asked_for(of(work)) == amount


def test_a_gpu_s_allocator_is_understood():
    error = torch.cuda.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 80 GiB"
    )
    assert asked_for(error) == "20.00 GiB"


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), RecursionError("memory"), ValueError("out of memory")]
)
def test_other_errors_stay_as_they_are(error):
    assert asked_for(error) is None
    with pytest.raises(type(error)) as raised, asking("x", "y"):
        raise error
    assert raised.value is error


def test_who_asked_is_named():
    with pytest.raises(RunError) as error, asking(lambda: "step 3", "lower train.micro_batch"):
        torch.empty(HUGE, dtype=torch.uint8)
    assert str(error.value) == f"step 3: out of memory, {HUGE:,} bytes could not be had; lower train.micro_batch"


def test_where_nothing_is_said_the_command_is_one_line(monkeypatch, capfd):
    monkeypatch.setattr("sys.argv", ["llmnas", "search"])
    assert run_process(lambda _: torch.empty(HUGE, dtype=torch.uint8)) == 1
    assert capfd.readouterr().err == f"llmnas: search: out of memory, {HUGE:,} bytes could not be had\n"
