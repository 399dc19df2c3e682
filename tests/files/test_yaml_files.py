"""YAML is refused wherever it could be misread."""

import pytest

from llmnas.errors import UserError
from llmnas.files import read_yaml


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


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "more than 100,000 values, with its aliases written out"),
        ("a: &a [*a]\n", "an alias stands within what it names"),
        ("a: &a {b: *a}\n", "an alias stands within what it names"),
        ("a: " + "[" * 60 + "]" * 60, "nested deeper than 50"),
        ("a: " + "{b: " * 300 + "}" * 300, "nested"),
        ("- " * 3000, "nested too deep"),
        ("? " * 3000, "nested too deep"),
        ("a: " + "x" * (1 << 18), "more than 262,144 bytes"),
    ],
    ids=["bomb", "list in itself", "mapping in itself", "51 deep", "300 deep", "dashes", "keys", "long"],
)
def test_yaml_that_no_person_writes_is_refused_at_once(tmp_path, text, reason):
    assert reason in refused(yaml_file(tmp_path, text))


def test_aliases_are_read(tmp_path):
    path = yaml_file(tmp_path, "a: &a {x: 1, y: [2]}\nb: *a\nc: [*a]\n")
    assert read_yaml(path) == {"a": {"x": 1, "y": [2]}, "b": {"x": 1, "y": [2]}, "c": [{"x": 1, "y": [2]}]}
