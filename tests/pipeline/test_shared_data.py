"""Trials of one sweep share what was prepared, where it depends on the same settings."""

import pytest
import tiny

from llmnas.config import load_config
from llmnas.data import TokenFile
from llmnas.pipeline.context import Context
from llmnas.pipeline.prepare import prepare
from llmnas.runs import RunFolder
from llmnas.tracking import Tracker


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    return tiny.write_config(folder, tiny.write_corpus(folder / "corpus"))


def prepared(config, folder, *sets):
    run = RunFolder(folder)
    with Tracker(run.path, "off", "", {}) as tracker:
        prepare(Context(load_config(config, list(sets)), run, tracker))
    return run


def files(run):
    return sorted(path.name for path in run.tokenizer.parent.iterdir())


def test_trials_of_a_sweep_share_tokens_of_the_same_settings(config, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    first = prepared(config, tmp_path / "a")
    same = prepared(config, tmp_path / "b", "train.lr=0.5", "search.evaluations=3")
    assert files(first) == files(same)
    assert len(files(first)) >= 5
    assert all((first.tokenizer.parent / name).samefile(same.tokenizer.parent / name) for name in files(first))
    assert {**first.recorded("prepare"), "ended": 0} == {**same.recorded("prepare"), "ended": 0}
    assert TokenFile.open(same.tokens("train")).info == TokenFile.open(first.tokens("train")).info
    for i, change in enumerate(("seed=1", "data.validation=0.5", "space.base.vocab_size=290")):
        other = prepared(config, tmp_path / f"other{i}", change)
        assert not first.tokens("train").samefile(other.tokens("train"))
    monkeypatch.setenv("WANDB_SWEEP_ID", "def")
    assert not first.tokens("train").samefile(prepared(config, tmp_path / "c").tokens("train"))
    assert not list(tmp_path.rglob("*.partial"))


def test_outside_of_a_sweep_nothing_is_shared(config, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    first, second = prepared(config, tmp_path / "a"), prepared(config, tmp_path / "b")
    assert not first.tokens("train").samefile(second.tokens("train"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_where_links_are_not_possible_files_are_copied(config, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")

    def refused(*_):
        raise PermissionError

    monkeypatch.setattr("llmnas.pipeline.shared_data.os.link", refused)
    first, second = prepared(config, tmp_path / "a"), prepared(config, tmp_path / "b")
    assert second.recorded("prepare")["tokenizer_sha256"] == first.recorded("prepare")["tokenizer_sha256"]
    assert TokenFile.open(second.tokens("train")).info == TokenFile.open(first.tokens("train")).info
