"""More text asked for than there is, and a search that cannot run: one line, before anything is trained."""

import json
import shutil

import pytest
import tiny
import yaml

from llmnas.config import load_config
from llmnas.data import Sequences, TokenFile
from llmnas.errors import UserError
from llmnas.pipeline.context import Context
from llmnas.pipeline.search import help_search
from llmnas.pipeline.tables import few_windows
from llmnas.runs import RunFolder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("few") / "text")


def windows_of(folder, seq):
    """How many windows of `seq` tokens the validation text of the tiny run has."""
    tokens = TokenFile.open(folder / "data" / "validation.bin").tokens
    return len(Sequences(tokens, seq, 0).fixed(10**9))


@pytest.mark.parametrize("key", ["search.windows", "train.eval_sequences"])
def test_more_windows_than_the_validation_text_has_are_refused_before_training(key, tiny_run, corpus, llmnas, tmp_path):
    have = windows_of(tiny_run.folder, 32)
    config = tiny.write_config(tmp_path, corpus)
    for asked, code in ((have + 1, 2), (have, 0)):
        folder = tmp_path / str(asked)
        done = llmnas("prepare", config, "--run-dir", folder, "--set", f"{key}={asked}")
        assert done.code == code, done.err
        if code:
            assert f"{key} = {asked}: the validation text has {have} sequences of train.seq_len = 32" in done.complaint
            again = llmnas("train", config, "--prepare", "--run-dir", folder, "--set", f"{key}={asked}")
            assert "ask for at most" in again.complaint
            assert not (folder / "supernet").exists()


def test_a_trained_run_refuses_them_too(tiny_run, llmnas, tmp_path):
    folder = tmp_path / "run"
    for name in ("data", "supernet"):
        shutil.copytree(tiny_run.folder / name, folder / name)
    for verb, key in (("search", "search.windows"), ("correlate", "correlate.gradient_windows")):
        done = llmnas(verb, tiny_run.config, "--run-dir", folder, "--set", f"{key}=5000")
        assert done.code == 2
        assert f"{key} = 5000: the " in done.complaint
    done = llmnas("search", tiny_run.config, "--run-dir", folder, "--set", "search.halving={first: 6}")
    assert "search.halving.first = 6 must be less than the 6 windows" in done.complaint


def test_the_default_takes_what_there_is_and_says_so(tiny_run, corpus, llmnas, tmp_path):
    """A short text of a user's own works with the defaults; how sure its losses are is in the table."""
    config = tiny.write_config(tmp_path, corpus, train={"seq_len": 64})
    values = yaml.safe_load(config.read_text())
    del values["search"]["windows"], values["search"]["sample"]
    config.write_text(yaml.safe_dump(values))
    have = windows_of(tiny_run.folder, 64)
    assert have < load_config(config, []).search.windows
    folder = tmp_path / "run"
    for name in ("data", "supernet"):
        shutil.copytree(tiny_run.folder / name, folder / name)
    done = llmnas("search", config, "--run-dir", folder)
    assert done.code == 0, done.err
    assert f"that of all {have} windows of the validation text" in " ".join(done.out.split())
    facts = json.loads((folder / "manifest.json").read_text())["stages"]["search"]
    assert facts["windows"] == have
    assert few_windows({"windows": 8, "windows_missing": 0}) == few_windows({}) == ""
    few = load_config(config, ["search.sample=120", "search.halving={first: 110}"])
    with pytest.raises(UserError, match=rf"halving.first = 110 must be less than the {have} windows"):
        help_search(Context(few, RunFolder(folder), None))


def test_a_sample_of_more_than_the_windows_is_refused(tiny_run, llmnas):
    sets = ("--set", "search.windows=8", "--set", "search.sample=9")
    done = llmnas("prepare", tiny_run.config, "--run-dir", tiny_run.folder, "--resume", *sets)
    assert done.code == 2
    assert "search.sample = 9: a candidate cannot be run on more than the 8 windows" in done.complaint


@pytest.mark.parametrize(
    ("sets", "complaint"),
    [
        (["search.strategy=magic"], "search.strategy: 'magic' does not exist; allowed: random"),
        (["search.options={tournament: 4}"], "search.options: nsga2 has no 'tournament'; allowed: population"),
        (["search.options={population: 2}"], "search.options of nsga2: population: "),
        (["search.strategy=ofa", "search.options={targets: {speed: [1]}}"], "search.options of ofa: targets: speed"),
        (["search.objectives={}"], "search.objectives: none given"),
        (["search.constraints={params: [5, 3]}"], "search.constraints: params: (5.0, 3.0) bounds nothing"),
    ],
)
def test_a_search_that_cannot_run_is_refused_before_anything_is_computed(sets, complaint, corpus, llmnas, tmp_path):
    config = tiny.write_config(tmp_path, corpus)
    words = [word for text in sets for word in ("--set", text)]
    for verb in ("run", "prepare"):
        done = llmnas(verb, config, "--run-dir", tmp_path / "run", *words)
        assert done.code == 2
        assert complaint in done.complaint
    assert not (tmp_path / "run").exists()
