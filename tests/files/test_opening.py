"""What is no regular file is refused in one line, at once; no name in a file leads out of its folder."""

import os
import socket

import pytest

from llmnas.errors import UserError
from llmnas.files import inside, open_regular, read_bytes, read_object, read_text, read_yaml, regular

READERS = [open_regular, regular, read_bytes, read_text, read_object, read_yaml]


def refused(call, *arguments):
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("read", READERS)
def test_only_regular_files_are_opened_and_nothing_waits(tmp_path, read):
    pipe, link = tmp_path / "pipe.json", tmp_path / "zero.json"
    os.mkfifo(pipe)
    link.symlink_to("/dev/zero")
    assert refused(read, pipe) == f"{pipe}: is a named pipe, not a file"
    assert refused(read, link) == f"{link}: is a device, not a file"
    assert refused(read, tmp_path) == f"{tmp_path}: is a folder, not a file"
    assert refused(read, tmp_path / "none") == f"{tmp_path / 'none'}: no such file"
    assert refused(read, pipe / "below") == f"{pipe / 'below'}: no such file"


def test_a_socket_and_a_loop_of_links_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
        assert "is a socket" in refused(open_regular, tmp_path / "socket")
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot be read (Too many levels" in refused(open_regular, tmp_path / "loop")
    assert "cannot be read (embedded null byte)" in refused(open_regular, tmp_path / "a\0b")


def test_no_more_is_read_than_was_agreed(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    assert refused(read_bytes, path, 4) == f"{path}: more than 4 bytes, the most that is read of such a file"
    path.write_bytes(b"ab\xff")
    assert refused(read_text, path) == f"{path}: not UTF-8 (byte 2)"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "", 3, None, "a/../../x", "out", "out/x", "a\0b", "loop"])
def test_a_name_that_leads_out_of_its_folder_is_refused(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    (folder / "loop").symlink_to("loop")
    refused(inside, folder, name)


@pytest.mark.parametrize("name", ["x", "a/b.bin", "near/x", "ä ö"])
def test_a_name_within_the_folder_is_its_path(tmp_path, name):
    (tmp_path / "near").symlink_to("a")
    assert inside(tmp_path, name) == tmp_path / name
