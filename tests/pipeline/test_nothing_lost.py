"""What damage, a full disk and kill -9 leave: refused by name, or gone on with to the same end."""

import contextlib
import json
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import time

import pytest
import tiny

from llmnas.archive import Archive
from llmnas.tracking import read_metrics


def losses(folder):
    """Training loss by step, exactly."""
    return {r["step"]: r["train_loss"].hex() for r in read_metrics(folder / "metrics.jsonl") if "train_loss" in r}


def only(tiny_run, folder, *parts):
    """A run folder with only these parts of the tiny run."""
    folder.mkdir()
    for part in parts:
        source = tiny_run.folder / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / part)
    return folder


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def change_a_byte(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, change_a_byte])
@pytest.mark.parametrize(
    ("verb", "name"),
    [
        ("train", "data/train.bin"),
        ("train", "data/validation.bin"),
        ("search", "data/validation.bin"),
    ],
)
def test_a_damaged_file_is_named_and_never_used(copied, llmnas, verb, name, damage):
    if verb == "train":  # from the beginning: a training that only restores its last step reads no text
        shutil.rmtree(copied.folder / "supernet")
    damage(copied.folder / name)
    done = llmnas(verb, copied.config, "--run-dir", copied.folder, "--resume")
    assert done.code == 2
    assert f"{copied.folder / name}: " in done.complaint
    assert "delete" in done.complaint
    assert not (verb == "train" and (copied.folder / "supernet" / "model.safetensors").exists())


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        ("search", "supernet/model.safetensors"),
        ("search", "evaluations.sqlite"),
        ("report", "evaluations.sqlite"),
        ("retrain", "evaluations.sqlite"),
        ("export", "retrain/result.json"),
        ("report", "manifest.json"),
        ("train", "config.yaml"),
    ],
)
def test_a_cut_off_file_is_named(copied, llmnas, verb, name):
    truncate(copied.folder / name)
    done = llmnas(verb, copied.config, "--run-dir", copied.folder, "--resume")
    assert done.code == 2, done.err
    assert str(copied.folder / name) in done.complaint


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_gone_on_from(copied, llmnas, caplog):
    weights = copied.folder / "supernet" / "model.safetensors"
    whole = weights.read_bytes()
    weights.unlink()
    bad = copied.folder / "supernet" / "checkpoints" / "step-00000006"
    change_a_byte(bad / "mp_rank_00_model_states.pt")
    done = llmnas("train", copied.config, "--run-dir", copied.folder, "--resume")
    assert done.code == 0, done.err
    assert f"{bad / 'mp_rank_00_model_states.pt'}: content changed since it was written; moved to" in caplog.text
    assert "going on from the checkpoint of step 4" in caplog.text
    assert weights.read_bytes() == whole


def test_tokens_that_a_kill_left_without_description_are_made_again(tiny_run, llmnas, tmp_path):
    folder = only(tiny_run, tmp_path / "run", "data", "config.yaml")
    (folder / "data" / "validation.json").unlink()
    assert llmnas("prepare", tiny_run.config, "--run-dir", folder, "--resume").code == 0
    for name in ("train.bin", "validation.bin", "validation.json", "tokenizer.json"):
        assert (folder / "data" / name).read_bytes() == (tiny_run.folder / "data" / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "key"),
    [("train.lr=0.02", "train.lr"), ("seed=1", "seed"), ("budget.max_params=13000", "budget.max_params")],
)
def test_a_folder_of_another_config_is_refused_with_the_difference(copied, llmnas, change, key):
    before = (copied.folder / "config.yaml").read_bytes()
    done = llmnas("run", copied.config, "--run-dir", copied.folder, "--resume", "--set", change)
    assert done.code == 2
    assert f"{key}: " in done.complaint
    assert change.split("=")[1] in done.complaint
    assert (copied.folder / "config.yaml").read_bytes() == before


def test_how_a_training_is_run_may_change_when_it_goes_on(copied, llmnas):
    """After a lack of memory, say: smaller micro-batches, more checkpoints."""
    (copied.folder / "supernet" / "model.safetensors").unlink()
    shutil.rmtree(copied.folder / "supernet" / "checkpoints" / "step-00000006")
    before, stored = losses(copied.folder), (copied.folder / "config.yaml").read_bytes()
    sets = ("train.micro_batch=2", "train.save_every=1", "train.keep=3", "train.checkpoint_blocks=true")
    arguments = [part for one in sets for part in ("--set", one)]
    done = llmnas("train", copied.config, "--run-dir", copied.folder, "--resume", *arguments)
    assert done.code == 0, done.err
    saved = sorted(path.name for path in (copied.folder / "supernet" / "checkpoints").iterdir())
    assert saved == ["step-00000004", "step-00000005", "step-00000006"]
    assert [float.fromhex(v) for v in losses(copied.folder).values()] == pytest.approx(
        [float.fromhex(v) for v in before.values()]
    )
    assert (copied.folder / "config.yaml").read_bytes() == stored
    assert llmnas("search", copied.config, "--run-dir", copied.folder, "--resume").code == 0  # the same run for all


def test_another_search_in_the_same_folder_is_refused(copied, llmnas):
    done = llmnas("search", copied.config, "--run-dir", copied.folder, "--resume", "--set", "search.strategy=random")
    assert done.code == 2
    assert "strategy: nsga2 -> random" in done.complaint


def test_constraints_that_nothing_meets_are_named(copied, llmnas):
    for name in ("evaluations.sqlite", "pareto.json"):
        (copied.folder / name).unlink()
    common = ("--run-dir", copied.folder, "--resume", "--set", "search.constraints={val_loss: 0.1}")
    assert llmnas("search", copied.config, *common).code == 0
    done = llmnas("retrain", copied.config, *common)
    assert done.code == 2
    assert "search.constraints" in done.complaint


@contextlib.contextmanager
def full_disk(limit):
    """No file may grow beyond `limit` bytes: writes fail as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("verb", "limit", "parts", "named"),
    [
        ("prepare", 6_000, (), "data/"),
        ("prepare", 30_000, (), "data/train.bin"),
        ("train", 300, ("data",), "config.yaml"),
        pytest.param("train", 6_000, ("data",), "supernet/checkpoints/", marks=pytest.mark.full),
        ("train", 100_000, ("data",), "supernet/checkpoints/"),
        ("search", 6_000, ("data", "supernet"), "evaluations.sqlite"),
        ("report", 40_000, ("data", "evaluations.sqlite", "metrics.jsonl"), "report.html"),
    ],
)
def test_a_full_disk_is_named_leaves_nothing_half_and_is_gone_on_from(
    tiny_run, llmnas, tmp_path, verb, limit, parts, named
):
    folder = only(tiny_run, tmp_path / "run", *parts)
    shutil.rmtree(folder / "supernet" / "checkpoints", ignore_errors=True)
    arguments = (verb, tiny_run.config, "--run-dir", folder, "--resume")
    with full_disk(limit):
        done = llmnas(*arguments)
    assert done.code == 1, done.err
    assert f"{folder / named}".rstrip("/") in done.complaint
    assert not list((folder / "supernet" / "checkpoints").glob("step-*[0-9]"))
    assert not list(folder.rglob(".*.partial"))
    begun = named == "supernet/checkpoints/"
    done = (tiny.run if begun else llmnas)(*arguments)  # bits are equal between processes alike
    assert done.code == 0, done.err
    if begun:
        assert losses(folder) == losses(tiny_run.folder)
        name = "supernet/model.safetensors"
        assert (folder / name).read_bytes() == (tiny_run.folder / name).read_bytes()


def killed(arguments, reached, moment):
    """Start a verb, and kill -9 it a moment after `reached()`."""
    process = subprocess.Popen(
        tiny.command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=tiny.environment()
    )
    while process.poll() is None and not reached():
        time.sleep(0.001)
    time.sleep(moment)
    process.kill()
    return process.wait()


@pytest.mark.parametrize("attempts", [1, pytest.param(5, marks=pytest.mark.full)])
def test_train_killed_at_any_moment_ends_with_the_same_losses(tiny_run, tmp_path, attempts):
    folder = only(tiny_run, tmp_path / "run", "data")
    arguments = ("train", tiny_run.config, "--run-dir", folder, "--resume")
    moments = random.Random(attempts)
    for attempt in range(attempts):
        before = folder / "metrics.jsonl"
        size = before.stat().st_size if before.exists() else 0
        killed(arguments, lambda: before.exists() and before.stat().st_size > size, moments.uniform(0, 0.1))  # noqa: B023
        assert attempt or before.exists()
    done = tiny.run(*arguments)
    assert done.code == 0, done.err
    assert losses(folder) == losses(tiny_run.folder)
    name = "supernet/model.safetensors"
    assert (folder / name).read_bytes() == (tiny_run.folder / name).read_bytes()


def test_what_training_cost_is_known_wherever_it_was_stopped(copied, llmnas, monkeypatch):
    """Later stages compare costs: weights without a record of them would count as free."""
    weights, manifest = copied.folder / "supernet" / "model.safetensors", copied.folder / "manifest.json"
    before, whole = json.loads(manifest.read_text()), weights.read_bytes()
    weights.unlink()  # as a kill between the last checkpoint and the weights leaves it
    arguments = ("train", copied.config, "--run-dir", copied.folder, "--resume")
    assert llmnas(*arguments).code == 0
    assert weights.read_bytes() == whole
    for key in ("steps", "tokens", "cpu_seconds"):
        assert json.loads(manifest.read_text())["stages"]["train"][key] == before["stages"]["train"][key]

    del before["stages"]["train"]
    del before["sha256"], before["files"]["supernet/model.safetensors"]
    manifest.write_text(json.dumps(before))
    weights.unlink()

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("llmnas.pipeline.train.save_weights", stopped)
    assert llmnas(*arguments).code == 130
    assert json.loads(manifest.read_text())["stages"]["train"]["tokens"] == 6 * 4 * 32


def evaluations(folder):
    archive = Archive.load(folder / "evaluations.sqlite")
    found = [(e.arch.id, json.dumps(e.metrics)) for e in archive.evaluations]
    front = sorted(e.arch.id for e in archive.front())
    archive.close()
    return found, front


@pytest.mark.parametrize("attempts", [1, pytest.param(4, marks=pytest.mark.full)])
def test_search_killed_at_any_moment_ends_with_the_same_front(tiny_run, tmp_path, attempts):
    sets = ("--set", "search.evaluations=60", "--set", "search.batch=1", "--resume")
    straight = only(tiny_run, tmp_path / "straight", "data", "supernet")
    assert tiny.run("search", tiny_run.config, "--run-dir", straight, *sets).code == 0
    folder = only(tiny_run, tmp_path / "run", "data", "supernet")
    arguments = ("search", tiny_run.config, "--run-dir", folder, *sets)
    moments = random.Random(attempts)

    def stored():
        with contextlib.suppress(sqlite3.Error):
            uri = f"file:{folder / 'evaluations.sqlite'}?mode=ro"
            with contextlib.closing(sqlite3.connect(uri, uri=True)) as db:
                return db.execute("SELECT count(*) FROM evaluations").fetchone()[0]
        return 0

    for _ in range(attempts):
        before = stored()
        killed(arguments, lambda: stored() > before, moments.uniform(0, 0.05))  # noqa: B023
        assert stored() > 0
    done = tiny.run(*arguments)
    assert done.code == 0, done.err
    assert evaluations(folder) == evaluations(straight)
