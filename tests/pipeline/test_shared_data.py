"""Runs side by side share what was prepared, where it depends on the same text and settings."""

from pathlib import Path

import pytest
import tiny

from llmnas.config import load_config
from llmnas.data import TokenFile
from llmnas.files import sha256
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


def test_runs_of_the_same_text_and_settings_share_tokens(config, tmp_path):
    first = prepared(config, tmp_path / "a")
    same = prepared(config, tmp_path / "b", "train.lr=0.5", "search.evaluations=3", "train.steps=9", "train.seq_len=16")
    assert files(first) == files(same)
    assert len(files(first)) >= 6
    assert all((first.tokenizer.parent / name).samefile(same.tokenizer.parent / name) for name in files(first))
    assert {**first.recorded("prepare"), "ended": 0} == {**same.recorded("prepare"), "ended": 0}
    assert TokenFile.open(same.tokens("train")).info == TokenFile.open(first.tokens("train")).info
    for i, change in enumerate(("seed=1", "data.validation=0.5", "space.base.vocab_size=290", "data.duplicates=exact")):
        other = prepared(config, tmp_path / f"other{i}", change)
        assert not first.tokens("train").samefile(other.tokens("train"))
    assert not first.tokens("train").samefile(prepared(config, tmp_path / "elsewhere" / "c").tokens("train"))
    assert not list(tmp_path.rglob("*.partial"))


def test_new_text_is_another_text_and_a_run_that_was_prepared_says_so(config, tmp_path, caplog):
    corpus = Path(load_config(config, []).data.source)
    first = prepared(config, tmp_path / "a")
    before = {name: sha256(first.tokenizer.parent / name) for name in files(first)}
    prepared(config, tmp_path / "a")
    assert not caplog.records
    added = corpus / "added.txt"
    added.write_text("something new " * 99)
    try:
        prepared(config, tmp_path / "a")
        assert "has changed since this run was prepared, and its tokens stay" in caplog.text
        assert {name: sha256(first.tokenizer.parent / name) for name in files(first)} == before
        second = prepared(config, tmp_path / "b")
        documents = [
            sum(run.recorded("prepare")[f"{side}_documents"] for side in ("train", "validation"))
            for run in (first, second)
        ]
        assert documents == [4, 5]
    finally:
        added.unlink()


def test_damaged_tokens_are_not_shared(config, tmp_path):
    first = prepared(config, tmp_path / "a")
    data = bytearray(first.tokens("train").read_bytes())
    data[99] ^= 1
    first.tokens("train").write_bytes(data)
    second = prepared(config, tmp_path / "b")
    TokenFile.open(second.tokens("train")).verify()


def test_where_links_are_not_possible_files_are_copied(config, tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr("llmnas.pipeline.shared_data.os.link", refused)
    first, second = prepared(config, tmp_path / "a"), prepared(config, tmp_path / "b")
    assert not first.tokens("train").samefile(second.tokens("train"))
    assert second.recorded("prepare")["tokenizer_sha256"] == first.recorded("prepare")["tokenizer_sha256"]
    assert TokenFile.open(second.tokens("train")).info == TokenFile.open(first.tokens("train")).info
