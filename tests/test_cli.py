"""The command line: help, exit codes, one line for every mistake, interruption."""

import json
import os
import re
import signal
import subprocess
import time

import pytest
import tiny

from llmnas import cli

VERBS = [info.name or info.callback.__name__ for info in cli.app.registered_commands]


def test_the_help_groups_every_verb_and_shows_how_to_begin(llmnas):
    done = llmnas("--help")
    assert done.code == 0
    for verb in VERBS:
        assert re.search(rf"^│ {verb} +[A-Z]", done.out, re.MULTILINE), verb
    assert "llmnas run quickstart" in done.out
    groups = re.findall(r"^╭─ (.*?) ─", done.out, re.MULTILINE)
    assert groups[:3] == ["Options", "Begin", "Everything at once"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(llmnas, verb):
    done = llmnas(verb, "--help")
    assert done.code == 0
    assert f"Usage: llmnas {verb}" in done.out
    if "CONFIG" in done.out and verb not in {"init", "report", "plan"}:
        assert all(option in done.out for option in ("--run-dir", "--set", "--resume"))


def test_no_argument_shows_the_help(llmnas):
    done = llmnas()
    assert "Usage: llmnas" in done.out
    assert done.err == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], ["frobnicate", "--help"]),
        (["run"], ["CONFIG"]),
        (["run", "none.yaml"], ["none.yaml", "no such file"]),
        (["run", "CONFIG", "--sett", "a=b"], ["--sett"]),
        (["run", "CONFIG", "--set", "train.lr"], ["--set train.lr", "key.key=value"]),
        (["run", "CONFIG", "--set", "train.lrr=1"], ["train.lrr", "unknown key"]),
        (["run", "CONFIG", "--set", "data.source=none.txt"], ["none.txt", "no such file"]),
        (["search", "CONFIG"], ["prepare"]),
        (["train", "CONFIG"], ["prepare"]),
        (["report", "CONFIG"], ["search"]),
        (["retrain", "CONFIG"], ["search"]),
        (["export", "CONFIG"], ["retrain"]),
        (["generate", "nowhere", "--prompt", "x"], ["nowhere", "neither a run folder"]),
        (["generate", "nowhere", "--prompt", "x", "--temperature", "-1"], ["temperature"]),
        (["init", "my.yaml", "--corpus", "none", "--max-params", "1M"], ["none", "no such file"]),
        (["init", "my.yaml", "--corpus", "TEXT", "--max-params", "lots"], ["lots", "1.5M"]),
        (["init", "my.yaml", "--corpus", "TEXT", "--max-params", "10"], ["too small"]),
        (["init", "CONFIG", "--corpus", "TEXT", "--max-params", "1M"], ["tiny.yaml", "--force"]),
        (["init", "my.txt", "--corpus", "TEXT", "--max-params", "1M"], ["my.txt", ".yaml"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_2(llmnas, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    corpus = tiny.write_corpus(tmp_path / "text", 8)
    config = tiny.write_config(tmp_path, corpus)
    names = {"CONFIG": config, "TEXT": corpus}
    done = llmnas(*[names.get(argument, argument) for argument in arguments])
    assert done.code == 2, done.err
    assert all(word in done.complaint for word in words), done.complaint


def test_a_budget_that_nothing_meets_is_named_before_any_work(llmnas, tmp_path):
    config = tiny.write_config(tmp_path, tmp_path / "there is no text yet")
    for verb in ("run", "prepare"):
        done = llmnas(verb, config, "--run-dir", tmp_path / "run", "--set", "budget.max_params=100")
        assert done.code == 2
        assert "max_params" in done.complaint
        assert not (tmp_path / "run" / "data").exists()
        assert not (tmp_path / "run" / "config.yaml").exists()  # it is free for a budget that can be met


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("search.strategy=nsga3", ["nsga3", "allowed", "nsga2"]),
        ("search.options={populatoin: 8}", ["populatoin", "allowed", "population"]),
        ("search.options={population: 1}", ["population", "got 1"]),
        ("search.objectives={}", ["objectives"]),
        ("search.constraints={val_loss: [3, 1]}", ["constraints", "val_loss", "low <= high"]),
        ("train.deepspeed=none.json", ["none.json", "no such file"]),
        ("train.micro_batch=3", ["micro_batch = 3", "4"]),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_before_any_work(llmnas, tmp_path, change, words):
    config = tiny.write_config(tmp_path, tmp_path / "there is no text yet")
    done = llmnas("run", config, "--run-dir", tmp_path / "run", "--set", change)
    assert done.code == 2
    assert all(word in done.complaint for word in words), done.complaint
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ["empty corpus"]),
        ({"a.txt": b"", "b.txt": b" \n"}, ["empty corpus"]),
        ({"a.txt": b"good text", "b.txt": b"bad \xff"}, ["b.txt", "UTF-8", "byte 4"]),
        ({"a.jsonl": b'{"text": "x"}\nnot json\n'}, ["a.jsonl", "line 2"]),
        ({"a.txt": b"one document alone " * 100}, ["text"]),
        ({"a.txt": b"short", "b.txt": b"texts"}, ["vocabulary of 300", "corpus is too small"]),
    ],
    ids=["no file", "no text", "not UTF-8", "not JSON", "one document", "too little"],
)
def test_a_corpus_that_cannot_be_used(llmnas, tmp_path, files, words):
    corpus = tmp_path / "text"
    corpus.mkdir()
    for name, content in files.items():
        (corpus / name).write_bytes(content)
    done = llmnas("run", tiny.write_config(tmp_path, corpus), "--run-dir", tmp_path / "run")
    assert done.code == 2
    assert all(word in done.complaint for word in words), done.complaint
    assert not list((tmp_path / "run").rglob("*.bin"))


def test_a_corpus_shorter_than_a_sequence(llmnas, tmp_path):
    corpus = tiny.write_corpus(tmp_path / "text", 3)
    (corpus / "z.txt").write_text("A very short one.")
    config = tiny.write_config(tmp_path, corpus, data={"validation": 0.0001})
    for verb in ("prepare", "train"):  # prepare says so, and train does not go on with what it left
        done = llmnas(verb, config, "--run-dir", tmp_path / "run")
        assert done.code == 2
        assert "tokens, fewer than one sequence of" in done.complaint


def test_a_run_folder_below_a_file(llmnas, tmp_path):
    config = tiny.write_config(tmp_path, "sotu")
    done = llmnas("run", config, "--run-dir", config / "run")
    assert done.code == 2
    assert "cannot write there" in done.complaint
    assert "--run-dir" in done.complaint


def test_doctor_finds_what_is_installed(llmnas):
    done = llmnas("doctor")
    assert done.code == 0, done.out
    for line in ("train .*torch", "train .*deepspeed", "export .*transformers", "CPU cores", "free disk"):
        assert re.search(rf"^ok +{line}", done.out, re.MULTILINE), done.out


def started(folder):
    """A training of 100,000 steps in a process of its own, after its first steps."""
    config = tiny.write_config(folder, folder / "text", train={"steps": 100000, "save_every": 5})
    process = subprocess.Popen(
        tiny.command("train", config, "--run-dir", folder / "run", "--resume"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=tiny.environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )  # fmt: skip
    checkpoints = folder / "run" / "supernet" / "checkpoints"
    while process.poll() is None and not any(checkpoints.glob("step-*[0-9]")):
        time.sleep(0.05)
    return process


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), pytest.param(signal.SIGTERM, 75, "SIGTERM at step", marks=pytest.mark.full)],
)
def test_a_stopped_training_says_so_in_one_line(llmnas, tmp_path, number, code, word):
    tiny.write_corpus(tmp_path / "text")
    config = tiny.write_config(tmp_path, tmp_path / "text", train={"steps": 100000, "save_every": 5})
    assert llmnas("prepare", config, "--run-dir", tmp_path / "run").code == 0
    process = started(tmp_path)
    os.kill(process.pid, number)
    out, err = process.communicate()
    assert process.returncode == code, err
    assert word in tiny.Done(code, out, err).complaint
    records = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(record) for record in records]
    assert not list((tmp_path / "run").glob("*.partial"))
