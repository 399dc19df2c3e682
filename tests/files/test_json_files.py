"""JSON that cannot be used is one line that names the file."""

import pytest
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from llmnas.errors import UserError
from llmnas.files import read_as, read_json, read_object


@pytest.mark.parametrize(
    "content", [b"", b'{"a": 1', b"\xff\xfe", b"{'a': 1}", b"[" * 101 + b"]" * 101, b"[" * 100_000]
)
def test_damaged_json_is_named(tmp_path, content):
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged JSON") as error:
        read_json(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_folder_and_a_number_of_too_many_digits_are_no_json(tmp_path):
    with pytest.raises(UserError, match="is a folder, not a file"):
        read_object(tmp_path)
    path = tmp_path / "settings.json"
    path.write_text('{"a": 1' + "0" * 5000 + "}")
    with pytest.raises(UserError, match="not JSON"):
        read_object(path)


def test_missing_json_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        read_json(tmp_path / "none.json")


def test_a_hundred_levels_are_read(tmp_path):
    path = tmp_path / "value.json"
    path.write_text("[" * 100 + "]" * 100)
    assert read_json(path)[0]


@with_config(ConfigDict(extra="allow"))
class Rung(TypedDict):
    depth: int


def test_what_is_read_as_a_kind_has_its_keys(tmp_path):
    path = tmp_path / "value.json"
    path.write_text('[{"depth": 3, "more": null}]')
    assert read_as(path, list[Rung]) == [{"depth": 3, "more": None}]
    for content, reason in [('[{"depth": "x"}]', "0.depth"), ("[{}]", "0.depth: missing key"), ("3", "valid list")]:
        path.write_text(content)
        with pytest.raises(UserError, match=reason) as error:
            read_as(path, list[Rung])
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)
