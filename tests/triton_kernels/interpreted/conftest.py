"""These tests run in Triton's interpreter, in a process of their own: see ../test_interpreter.py.

Every tensor that a kernel's public function allocates is poisoned (NaN, or a loud integer) and lies between guard
regions that must be untouched at the end.
"""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]

GUARD = 512
POISON = {torch.int8: 0x55, torch.uint8: 0xAA, torch.int32: 0x5A5A5A5A, torch.bool: True}


def between_guards(shape, dtype):
    """An uninitialised tensor that says so, and the whole buffer around it."""
    shape = torch.Size(shape)
    poison = POISON.get(dtype, float("nan"))
    buffer = torch.full((shape.numel() + 2 * GUARD,), poison, dtype=dtype)
    return buffer[GUARD : GUARD + shape.numel()].view(shape), buffer


@pytest.fixture(autouse=True)
def guarded_memory(monkeypatch):
    buffers = []

    def empty(shape, *, dtype, device=None):
        tensor, buffer = between_guards(shape, dtype)
        buffers.append((buffer, buffer.clone()))
        return tensor

    monkeypatch.setattr(torch, "empty", empty)
    yield buffers
    for buffer, before in buffers:
        for end in (slice(GUARD), slice(len(buffer) - GUARD, None)):
            torch.testing.assert_close(buffer[end], before[end], rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def inside():
    """Copy a tensor into poisoned surroundings: a kernel that reads beyond it shows."""

    def place(tensor):
        copy, _ = between_guards(tensor.shape, tensor.dtype)
        return copy.copy_(tensor)

    return place
