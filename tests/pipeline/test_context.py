"""A run is bound to its config, from whatever working directory it is named."""

import pytest
import tiny
import yaml

from llmnas.config import load_config
from llmnas.errors import UserError
from llmnas.pipeline.context import Context
from llmnas.pipeline.prepare import prepare
from llmnas.pipeline.stand_alone import _identity
from llmnas.runs import RunFolder
from llmnas.tracking import Tracker


@pytest.fixture
def project(tmp_path):
    """A folder with a config, its text beside it."""
    folder = tmp_path / "project"
    folder.mkdir()
    tiny.write_corpus(folder / "texts")
    tiny.write_config(folder, "texts")
    return folder


def trained_alone(context):
    """What tells apart networks that were trained alone."""
    return _identity(context, context.config.space.largest(), context.config.train, 0, "scratch")


def claimed(path, folder, *sets):
    run = RunFolder(folder)
    context = Context(load_config(path, list(sets)), run, Tracker(run.path, "off", "", {}))
    context.claim()
    return context


def test_a_run_goes_on_from_any_working_directory(project, tmp_path, monkeypatch):
    monkeypatch.chdir(project)
    context = claimed("tiny.yaml", tmp_path / "run")
    prepare(context)
    first = context.identity
    monkeypatch.chdir(tmp_path)
    assert claimed("project/tiny.yaml", tmp_path / "run").identity == first
    (tmp_path / "link").symlink_to("project")
    assert claimed("link/tiny.yaml", tmp_path / "run").identity == first
    tiny.write_corpus(tmp_path / "others")
    with pytest.raises(UserError, match=r"made with another config: data\.source: .*project/texts -> others"):
        claimed("project/tiny.yaml", tmp_path / "run", "data.source=others")


def test_a_run_of_before_that_keeps_a_relative_path_goes_on(project, tmp_path, monkeypatch):
    monkeypatch.chdir(project)
    context = claimed("tiny.yaml", tmp_path / "run")
    prepare(context)
    run = context.run
    values = yaml.safe_load(run.config.read_text())
    values["data"]["source"] = "texts"
    run.config.write_text(yaml.safe_dump(values))
    of_before = claimed(run.config, run.path)
    assert of_before.config.data.source == "texts"
    for folder, path in ((project, "tiny.yaml"), (tmp_path, "project/tiny.yaml")):
        monkeypatch.chdir(folder)
        context = claimed(path, run.path)
        assert context.config.data.source == str(project / "texts")  # where it is read
        assert context.identity == of_before.identity
        assert trained_alone(context) == trained_alone(of_before)
    with pytest.raises(UserError, match=r"data\.source: texts -> sotu"):
        claimed(path, run.path, "data.source=sotu")
