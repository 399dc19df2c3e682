"""States are written through a hash; a full disk is called so."""

import contextlib
import resource
import signal

import pytest
import torch

from llmnas.files import sha256
from llmnas.train.state_files import tensor_bytes, write_state

STATE = {"weights": torch.arange(50_000.0), "nested": [{"step": torch.tensor(3.0)}], "lr": 0.1}


def test_a_state_is_hashed_while_it_is_written_and_reads_back(tmp_path):
    written = write_state(STATE, tmp_path / "a.pt")
    assert (written.sha256, written.bytes) == (sha256(tmp_path / "a.pt"), (tmp_path / "a.pt").stat().st_size)
    read = torch.load(tmp_path / "a.pt", weights_only=True)
    assert torch.equal(read["weights"], STATE["weights"])
    assert read["nested"] == STATE["nested"]


def test_shared_tensors_count_once():
    assert tensor_bytes({"a": STATE["weights"], "b": [STATE["weights"][:10], STATE]}) == 200_004


@contextlib.contextmanager
def largest_file(size):
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_no_room_is_named_with_the_bytes_that_are_needed(tmp_path):
    with largest_file(1_000), pytest.raises(OSError, match="no file may grow so large") as error:
        write_state(STATE, tmp_path / "a.pt")
    assert error.value.filename == str(tmp_path / "a.pt")
    assert "200,004 bytes are needed" in error.value.strerror
