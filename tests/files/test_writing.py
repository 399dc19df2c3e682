"""Files are whole or absent whatever happens."""

import hashlib
import json
import math
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmnas.files import atomic_open, read_json, sha256, write_json, write_text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)

# stopped by the signal in the middle of the file, or by a limit on its size (as a full disk: OSError in write or flush)
INTERRUPTED = """
import os, resource, signal, sys
from pathlib import Path
from llmnas.files import atomic_open
how, path = sys.argv[1], Path(sys.argv[2])
if how == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
with atomic_open(path) as stream:
    stream.write(b"new" * 5000)
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def interrupt(how, path):
    return subprocess.run([sys.executable, "-c", INTERRUPTED, how, str(path)], capture_output=True, text=True)


def test_a_written_file_holds_the_bytes_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "folder" / "file.bin"
    for content in (b"first", b"\x00second\n"):
        with atomic_open(path) as stream:
            stream.write(content)
            assert not path.exists() or path.read_bytes() == b"first"
        assert path.read_bytes() == content
        assert list(path.parent.iterdir()) == [path]


def test_a_reader_of_the_old_file_never_sees_the_new_one(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with path.open() as reader:
        write_text(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_an_error_while_writing_leaves_the_old_file_and_no_partial_one(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")

    def interrupted():
        with atomic_open(path) as stream:
            stream.write(b"half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_no_partial_one(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    result = interrupt("full", path)
    assert result.returncode == 1
    assert "OSError" in result.stderr
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    assert interrupt("killed", path).returncode == -9
    assert path.read_text() == "old"
    (left,) = tmp_path.glob("*.partial")
    kept = [tmp_path / f".file.{name}.partial" for name in (os.getppid(), "mine")]  # of one that runs, and nobody's
    for other in kept:
        other.write_text("being written")
    write_text(tmp_path / "file.b", "another file")
    assert left.exists()
    write_text(path, "new")
    assert path.read_text() == "new"
    assert set(tmp_path.glob("*.partial")) == set(kept)


@given(JSON)
@settings(max_examples=30)
def test_json_comes_back(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value
    assert json.loads(path.read_text(encoding="utf-8")) == value
    assert path.read_text(encoding="utf-8").endswith("\n")


@pytest.mark.parametrize("value", [math.nan, math.inf, {1: object()}])
def test_what_json_cannot_say_is_refused_before_the_old_file_is_touched(tmp_path, value):
    path = tmp_path / "value.json"
    write_json(path, [1])
    with pytest.raises((ValueError, TypeError)):
        write_json(path, value)
    assert read_json(path) == [1]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("size", [0, 1, 1 << 20])
def test_sha256_is_that_of_the_content(tmp_path, size):
    path = tmp_path / "file"
    content = bytes(i * i % 251 for i in range(1000)) * (size // 1000 + 1)
    path.write_bytes(content[:size])
    assert sha256(path) == hashlib.sha256(content[:size]).hexdigest()
