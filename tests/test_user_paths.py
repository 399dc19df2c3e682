"""`~` in every path that a user gives: a shell expands it only at the beginning of a word."""

from pathlib import Path

import pytest
import tiny
import yaml
from typer.main import get_command

from llmnas.archive import Archive, read_archive
from llmnas.cli.app import app
from llmnas.config import load_config
from llmnas.data.corpus import open_corpus
from llmnas.errors import UserError
from llmnas.files import user_path
from llmnas.pipeline.metrics import own_metric
from llmnas.search import search
from llmnas.search.predictor import Predictor
from llmnas.space import SearchSpace

SPACE = SearchSpace.from_dict(tiny.CONFIG["space"])


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_home_folders_are_written_out(home):
    assert user_path("~/runs") == home / "runs"
    assert user_path("~") == home
    assert user_path("~root").is_absolute()
    for plain in ("runs/~", "a~b", "/x", Path("y")):
        assert user_path(plain) == Path(plain)


def test_the_home_of_nobody_is_one_line():
    with pytest.raises(UserError, match="~nobody-of-that-name/x: no home folder of that name"):
        user_path("~nobody-of-that-name/x")
    with pytest.raises(UserError, match="3 is not a path"):
        user_path(3)


def params_of(command):
    """Every parameter of a command and of the commands below it."""
    yield from command.params
    for below in getattr(command, "commands", {}).values():
        yield from params_of(below)


def test_every_path_of_the_command_line_is_read_by_the_same_function():
    described = [(param.name, param.type_descriptor) for param in params_of(get_command(app))]
    paths = [(name, found.parameter_info) for name, found in described if "Path" in str(found.annotation)]
    assert {"config", "run_dir", "path", "folder", "model", "table"} <= {name for name, _ in paths}
    plain = [name for name, info in paths if info.parser is not user_path]
    assert not plain, f"{plain}: read it with parser=user_path"


def test_the_command_line_takes_a_run_folder_at_home(home):
    config = home / "tiny.yaml"
    config.write_text(yaml.safe_dump({**tiny.CONFIG, "data": {"source": "~/nothing-there"}}))
    with pytest.raises(UserError) as error:
        app(["prepare", "~/tiny.yaml", "--run-dir=~/runs"], standalone_mode=False)
    assert str(error.value).startswith(f"{home}/nothing-there: no such file or folder")
    assert (home / "runs").exists()


@pytest.mark.parametrize("key", ["data.source", "data.tokenizer", "train.deepspeed", "train.init_from"])
def test_paths_in_a_config(home, key):
    path = home / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny.CONFIG))
    more = ["data.tokenizer=~/model"] if key == "train.init_from" else []
    value = load_config("~/tiny.yaml", [*more, f"{key}=~/model"])
    for part in key.split("."):
        value = getattr(value, part)
    assert value == f"{home}/model"


def test_a_config_with_the_home_of_nobody_is_one_line(home):
    path = home / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny.CONFIG))
    with pytest.raises(UserError, match=r"tiny.yaml: data.source: ~nobody-of-that-name: no home folder"):
        load_config(path, ["data.source=~nobody-of-that-name"])


def test_paths_of_the_python_api(home):
    (home / "space.yaml").write_text(yaml.safe_dump(tiny.CONFIG["space"]))
    assert SearchSpace.from_yaml("~/space.yaml") == SPACE
    archive = search(
        SPACE, lambda archs: [{"loss": a.hidden_size} for a in archs], "random", {"loss": "min"}, evaluations=6,
        archive_path="~/deep/evaluations.sqlite",
    )  # fmt: skip
    archive.close()
    assert (home / "deep" / "evaluations.sqlite").is_file()
    assert Archive.load("~/deep/evaluations.sqlite").evaluations == archive.evaluations
    assert read_archive("~/deep/evaluations.sqlite")[2] == list(archive.evaluations)
    predictor = Predictor(SPACE, "gp", 0)
    predictor.fit([e.arch for e in archive.evaluations], [e.metrics["loss"] for e in archive.evaluations])
    predictor.save("~/p.safetensors", "loss")
    assert (home / "p.safetensors").is_file()
    assert Predictor.load("~/p.safetensors", SPACE, "loss").kind == "gp"
    (home / "text.txt").write_text("some text")
    assert open_corpus("~/text.txt")
    (home / "cost.py").write_text("def dollars(arch, base):\n    return 1.0\n")
    assert own_metric("~/cost.py:dollars")[0] == "dollars"
