"""Files are whole or absent whatever happens; YAML is refused wherever it could be misread."""

import hashlib
import json
import math
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmnas.errors import UserError
from llmnas.files import atomic_open, read_json, read_object, read_yaml, sha256, write_json, write_text

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


def yaml_file(folder, content):
    path = folder / "space.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(path):
    with pytest.raises(UserError) as error:
        read_yaml(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


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


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe", b"{'a': 1}"])
def test_damaged_json_is_named(tmp_path, content):
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged JSON") as error:
        read_json(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_folder_and_a_number_of_too_many_digits_are_no_json(tmp_path):
    with pytest.raises(UserError, match="is a folder, not a JSON file"):
        read_object(tmp_path)
    path = tmp_path / "settings.json"
    path.write_text('{"a": 1' + "0" * 5000 + "}")
    with pytest.raises(UserError, match="not JSON"):
        read_object(path)


def test_missing_json_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize("size", [0, 1, 1 << 20])
def test_sha256_is_that_of_the_content(tmp_path, size):
    path = tmp_path / "file"
    content = bytes(i * i % 251 for i in range(1000)) * (size // 1000 + 1)
    path.write_bytes(content[:size])
    assert sha256(path) == hashlib.sha256(content[:size]).hexdigest()


def test_yaml_mapping_is_read(tmp_path):
    path = yaml_file(tmp_path, "\ufeffa: 1\nb: {c: [2, 3], d: 'é'}\nlist: [{a: 1}, {a: 2}]\n")
    assert read_yaml(path) == {"a": 1, "b": {"c": [2, 3], "d": "é"}, "list": [{"a": 1}, {"a": 2}]}


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "b: {a: 1, a: 1}\n", "list:\n- {a: 1, a: 2}\n", "'a': 1\na: 2"])
def test_a_key_written_twice_is_refused_at_any_depth(tmp_path, text):
    assert "key 'a' stands twice" in refused(yaml_file(tmp_path, text))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"- 1\n- 2\n", "found list"),
        (b"", "found NoneType"),
        (b"word", "found str"),
        (b"a: \xff", "not UTF-8 (byte 3)"),
        (b"a: [1,", "not YAML"),
        (b"a: \x00", "not YAML"),
        (b"a: 1\n---\nb: 2\n", "not YAML"),
        (b"a: !!python/object/apply:os.getcwd []", "not YAML"),
        (b"a: *nowhere", "not YAML"),
    ],
)
def test_other_content_is_refused_in_one_line(tmp_path, content, reason):
    assert reason in refused(yaml_file(tmp_path, content))


@pytest.mark.parametrize(
    "text",
    [
        "{[1, 2]: 3}",
        "? {a: 1}\n: 2\n",
        "a: 2024-13-45",
        "a: !!int many",
        "a: " + "[" * 5000,
    ],
    ids=["list as key", "mapping as key", "impossible date", "impossible integer", "nested too deep"],
)
def test_yaml_that_breaks_the_constructor_is_a_user_error_too(tmp_path, text):
    refused(yaml_file(tmp_path, text))


def test_yaml_that_is_not_a_file_is_named(tmp_path):
    assert "no such file" in refused(tmp_path / "none.yaml")
    assert "is a folder" in refused(tmp_path)
