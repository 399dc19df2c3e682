"""Hashes made while writing are those of the file; what was written is told before the file has its name."""

import errno
import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmnas.errors import UserError
from llmnas.files import Digest, atomic_open, hashed_open, hashing, require_written, write_json


@given(st.lists(st.binary(max_size=40)), st.integers(1, 16))
def test_the_digest_of_a_stream_is_that_of_its_bytes_however_they_are_cut(pieces, block):
    before, hashing.BLOCK = hashing.BLOCK, block
    try:
        digest = Digest(blocks=True)
        for piece in pieces:
            digest.update(piece)
        found = digest.blocks()
    finally:
        hashing.BLOCK = before
    data = b"".join(pieces)
    assert digest.hexdigest() == hashlib.sha256(data).hexdigest()
    assert digest.bytes == len(data)
    assert found == tuple(hashlib.sha256(data[i : i + block]).hexdigest() for i in range(0, len(data), block))


def test_a_file_is_noted_when_it_is_whole_and_has_no_name_yet(tmp_path):
    path, notes = tmp_path / "a", []

    def seal(written):
        assert not path.exists()
        notes.append(written)

    with hashed_open(path, seal) as stream:
        stream.write(b"ab")
        stream.write(memoryview(b"cdefgh").cast("H"))
    assert path.read_bytes() == b"abcdefgh"
    assert [(n.path, n.bytes, n.sha256) for n in notes] == [(path, 8, hashlib.sha256(b"abcdefgh").hexdigest())]
    write_json(path.with_name("b.json"), {"a": 1}, lambda written: require_written_as(written, tmp_path))
    require_written(path, 8, notes[0].sha256, "make it again")


def require_written_as(written, folder):
    assert not (folder / "b.json").exists()
    assert written.bytes == len(b'{\n  "a": 1\n}\n')


def test_a_note_that_fails_leaves_no_file(tmp_path):
    def seal(_):
        raise OSError(errno.EIO, "broken")

    with pytest.raises(OSError, match="broken"), hashed_open(tmp_path / "a", seal) as stream:
        stream.write(b"ab")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_says_so_with_the_path_and_the_bytes(tmp_path, number):
    with pytest.raises(OSError, match="5,000") as error, atomic_open(tmp_path / "a", needs=5_000):
        raise OSError(number, os.strerror(number))
    words = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota", errno.EFBIG: "no file may grow so large"}
    assert error.value.filename == str(tmp_path / "a")
    assert error.value.strerror.startswith(words[number])
    assert ": 5,000 bytes are needed, " in error.value.strerror
    assert error.value.strerror.endswith(" are free")


@pytest.mark.parametrize(
    ("content", "message"), [(b"abcd", "3 bytes instead of 4|4 bytes instead of 3"), (b"abx", "SHA-256 differs")]
)
def test_what_is_not_what_was_written_is_named(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        require_written(tmp_path / "a", 3, hashlib.sha256(b"abc").hexdigest(), "make it again")
    assert str(error.value).startswith(f"{tmp_path / 'a'}: damaged: ")
    assert str(error.value).endswith("; make it again")
    with pytest.raises(UserError, match="b: no such file; make it again"):
        require_written(tmp_path / "b", 3, "", "make it again")
