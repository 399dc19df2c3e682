"""These tests run in Triton's interpreter, in a process of their own: see ../test_interpreter.py.

Every tensor that a kernel's public function allocates is poisoned (NaN, or a loud integer) and lies between guard
regions that no kernel may read or write; what a test hands in lies so too, and must be unchanged at the end.
"""

import os

import numpy as np
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


class Guards:
    """The guard regions of a test."""

    def __init__(self):
        self.buffers = []
        self.edges = np.empty(0, np.uint64)

    def add(self, buffer):
        """Watch a buffer of `between_guards`, from what it holds now."""
        self.buffers.append((buffer, buffer.clone()))
        places = (0, GUARD, len(buffer) - GUARD, len(buffer))
        new = [buffer.data_ptr() + place * buffer.itemsize for place in places]
        self.edges = np.sort(np.append(self.edges, np.array(new, np.uint64)))

    def refuse(self, pointers, mask):
        """Fail where a lane that is not masked off points into a guard region: also if its value is thrown away."""
        at = np.broadcast_to(pointers.data, mask.data.shape)[mask.data.astype(bool)]
        # behind an odd number of edges: between a buffer's begin and its tensor, or between that and its end
        assert not (np.searchsorted(self.edges, at, side="right") & 1).any(), "outside its tensor"

    def unchanged(self):
        """Fail where a guard region holds something else than at the beginning."""
        for buffer, before in self.buffers:
            for end in (slice(GUARD), slice(len(buffer) - GUARD, None)):
                torch.testing.assert_close(buffer[end], before[end], rtol=0, atol=0, equal_nan=True)


@pytest.fixture(autouse=True)
def guarded_memory(monkeypatch):
    from triton.runtime.interpreter import InterpreterBuilder

    guards = Guards()

    def empty(shape, *, dtype, device=None):
        tensor, buffer = between_guards(shape, dtype)
        guards.add(buffer)
        return tensor

    def watch(name, mask):
        real = getattr(InterpreterBuilder, name)

        def watched(self, pointers, *rest):
            guards.refuse(pointers, rest[mask])
            return real(self, pointers, *rest)

        monkeypatch.setattr(InterpreterBuilder, name, watched)

    watch("create_masked_load", 0)
    watch("create_masked_store", 1)
    monkeypatch.setattr(torch, "empty", empty)
    yield guards
    guards.unchanged()


@pytest.fixture
def inside(guarded_memory):
    """Copy a tensor into poisoned surroundings: a kernel that reads beyond it shows, and one that writes into it."""
    placed = []

    def place(tensor):
        copy, buffer = between_guards(tensor.shape, tensor.dtype)
        copy.copy_(tensor)
        guarded_memory.add(buffer)
        placed.append((copy, tensor.detach().clone()))
        return copy

    yield place
    for copy, before in placed:
        torch.testing.assert_close(copy.detach(), before, rtol=0, atol=0, equal_nan=True)
