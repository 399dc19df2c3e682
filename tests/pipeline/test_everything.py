"""A whole run, inspected: what it prints, what its folder holds, and that nothing is done twice."""

import json
import os
import re
import shlex
from dataclasses import replace

import numpy as np
import pytest
import yaml
from scipy import stats

from llmnas.archive import Archive
from llmnas.config import load_config
from llmnas.cost import count_params
from llmnas.data import EOS_ID, Sequences, TokenFile, read_corpus
from llmnas.evaluate.quality import window_losses
from llmnas.pipeline.context import Context
from llmnas.pipeline.stand_alone import load_alone
from llmnas.runs import RunFolder
from llmnas.space import Architecture
from llmnas.supernet import Transformer, load_weights
from llmnas.tracking import Tracker, read_metrics


@pytest.fixture(scope="module")
def context(tiny_run):
    config = load_config(tiny_run.config, [])
    return Context(config, RunFolder(tiny_run.folder), Tracker(tiny_run.folder, "off", "", {}))


@pytest.fixture(scope="module")
def archive(tiny_run):
    return Archive.load(tiny_run.folder / "evaluations.sqlite")


@pytest.fixture(scope="module")
def result(tiny_run):
    return json.loads((tiny_run.folder / "retrain" / "result.json").read_text())


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()
    }


def test_the_folder_holds_what_the_contract_says(tiny_run, result):
    expected = {
        "config.yaml",
        "manifest.json",
        "data",
        "supernet",
        "evaluations.sqlite",
        "pareto.json",
        "metrics.jsonl",
    }
    expected |= {"decision.json", "report.html", "export", "retrain", "front.png", "curves.png"}
    open_archive = {"evaluations.sqlite-shm", "evaluations.sqlite-wal"}  # of another test of this module
    assert {path.name for path in tiny_run.folder.iterdir()} - open_archive == expected
    assert [path.name for path in (tiny_run.folder / "export").iterdir()] == [result["found"]]
    assert not list(tiny_run.folder.rglob("*.partial"))


def test_the_manifest_names_every_stage_and_version(tiny_run):
    manifest = json.loads((tiny_run.folder / "manifest.json").read_text())
    assert list(manifest["stages"]) == ["prepare", "train", "search", "retrain", "export", "report"]
    assert manifest["versions"].keys() == {"python", "llmnas", "torch", "deepspeed", "transformers"}
    assert manifest["stages"]["train"]["tokens"] == 6 * 4 * 32


def test_the_stored_config_is_the_whole_config_and_runs_again(tiny_run):
    stored = tiny_run.folder / "config.yaml"
    assert load_config(stored, []) == load_config(tiny_run.config, [])
    assert yaml.safe_load(stored.read_text())["train"]["weight_decay"] == 0.1  # a default, written out


def test_losses_are_measured_within_documents_where_training_stays_within_them(context, monkeypatch):
    train = context.config.train.model_copy(update={"document_mask": True})
    masked = replace(context, config=context.config.model_copy(update={"train": train}))
    assert (context.document_end, context.evaluator().eos_id) == (None, None)
    assert (masked.document_end, masked.evaluator().eos_id) == (EOS_ID, EOS_ID)
    windows, model = masked.loss_windows()[0].copy(), masked.supernet()
    windows[:, 9] = EOS_ID  # the tiny text has hardly any window with an end of a document in it
    # opening tokens hashes all of them: not for every loss
    monkeypatch.setattr(TokenFile, "open", lambda path: pytest.fail(f"{path} is read again"))
    np.testing.assert_array_equal(
        masked.losses(model, None, windows), window_losses(model, None, windows, eos_id=EOS_ID)
    )
    assert (masked.losses(model, None, windows) != context.losses(model, None, windows)).all()


def test_no_speech_is_on_both_sides(tiny_run, context):
    documents = len(read_corpus(context.config.data.source))
    infos = [TokenFile.open(tiny_run.folder / "data" / f"{split}.bin").info for split in ("train", "validation")]
    assert sum(info.documents for info in infos) == documents
    assert sum(info.text_bytes for info in infos) == sum(
        len(document.text.encode()) for document in read_corpus(context.config.data.source)
    )


def test_every_evaluated_architecture_is_in_the_space_and_budget(archive, context):
    config = context.config
    assert len(archive) == config.search.evaluations
    for evaluation in archive.evaluations:
        assert config.space.contains(evaluation.arch)
        params = count_params(evaluation.arch, config.space.base).total
        assert evaluation.metrics["params"] == params <= config.budget.max_params


def test_the_front_printed_and_stored_is_that_of_all_evaluations(tiny_run, archive):
    def beaten(a):
        return any(
            b.metrics["val_loss"] <= a.metrics["val_loss"]
            and b.metrics["params"] <= a.metrics["params"]
            and (b.metrics["val_loss"], b.metrics["params"]) != (a.metrics["val_loss"], a.metrics["params"])
            for b in archive.evaluations
        )

    front = {a.arch.id for a in archive.evaluations if not beaten(a)}
    assert {entry["id"] for entry in json.loads((tiny_run.folder / "pareto.json").read_text())} == front
    lines = tiny_run.done.out.split("Pareto front\n")[1].split("Found against")[0].splitlines()
    assert {line.split()[0] for line in lines[1:] if len(line.split()) >= 7 and line.split()[2] == "±"} == front


def test_the_loss_of_the_search_is_that_of_the_supernets_slice(archive, context):
    """Twelve windows of which six are run on: the estimate lies within a few of its own standard errors."""
    windows, _ = context.windows(context.config.search.windows)
    supernet = load_weights(Transformer(context.config.space), context.run.supernet)
    for evaluation in archive.front():
        exact = window_losses(supernet, evaluation.arch, windows).mean()
        assert abs(evaluation.metrics["val_loss"] - exact) <= 6 * evaluation.metrics["val_loss_error"]
        assert evaluation.metrics["perplexity"] == pytest.approx(np.exp(evaluation.metrics["val_loss"]))


def test_the_best_of_the_front_is_trained_alone(archive, result, context):
    best = min(archive.front(), key=lambda e: e.metrics["val_loss"])
    assert result["found"] == best.arch.id
    for run in result["runs"]["found"]:
        arch = Architecture.from_dict(run["architecture"])
        assert arch == best.arch
        model = load_alone(context, arch, context.run.stand_alone("retrain", f"found-{arch.id}", run["seed"]))
        file = context.tokens("validation")
        windows = Sequences(file.tokens, context.config.train.seq_len, 0).fixed(context.config.search.windows)
        assert run["val_loss"] == pytest.approx(window_losses(model, None, windows).mean(), abs=1e-9)
        bits = run["val_loss"] / np.log(2) * file.info.tokens / file.info.text_bytes
        assert run["bits_per_byte"] == pytest.approx(bits)


def test_the_hand_designed_network_is_of_equal_size_and_the_verdict_is_scipys(result, tiny_run):
    ours, theirs = ([run["val_loss"] for run in result["runs"][name]] for name in ("found", "smollm2"))
    sizes = [result["runs"][name][0]["params"] for name in ("found", "smollm2")]
    assert sizes[1] <= sizes[0] <= 1.03 * sizes[1]
    (comparison,) = result["comparisons"]
    interval = stats.ttest_rel(ours, theirs).confidence_interval()
    assert (comparison["low"], comparison["high"]) == pytest.approx((interval.low, interval.high))
    within = interval.low <= 0 <= interval.high
    assert ("within seed noise" in tiny_run.done.out) == within
    assert comparison["clear"] == (not within)


def test_the_end_names_report_and_export(tiny_run, result):
    export = tiny_run.folder / "export" / result["found"]
    assert f"report: {tiny_run.folder / 'report.html'}\n" in tiny_run.done.out
    assert f"export: {export}\n" in tiny_run.done.out
    card = (export / "README.md").read_text()
    for fact in (result["found"], str(tiny_run.folder.parent / "text"), "Seed:", "val_loss", "25%"):
        assert fact in card


def test_the_end_says_what_to_do_next(tiny_run, llmnas):
    """Three commands; the first is run as it is printed, `test_elastic_verb` runs what the second does."""
    lines = tiny_run.done.out.split("What next:\n")[1].splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    assert [command[:2] for command in commands] == [["llmnas", verb] for verb in ("generate", "export", "init")]
    done = llmnas(*commands[0][1:])
    assert done.code == 0, done.err
    config, option, folder, elastic = commands[1][2:]
    assert (config, option, folder) == (str(tiny_run.folder / "config.yaml"), "--run-dir", str(tiny_run.folder))
    assert elastic == "--elastic"


def test_piped_output_is_plain_lines(tiny_run):
    for text in (tiny_run.done.out, tiny_run.done.err):
        assert "\x1b" not in text
        assert not set(text) & set("━─│┃┏╭\r")
    stages = [line.split(":")[0] for line in tiny_run.done.err.splitlines() if ": " in line]
    for stage in ("prepare", "supernet", "search", "found 1/2", "smollm2 2/2"):
        assert stage in stages
    assert "supernet: 6/6, loss " in tiny_run.done.err
    # no library's warnings among them
    assert [line for line in tiny_run.done.err.splitlines() if not re.match(r"[\w /]+: \d+/\d+", line)] == []


def test_curves_are_recorded(tiny_run):
    records = read_metrics(tiny_run.folder / "metrics.jsonl")
    losses = {r["step"]: r["train_loss"] for r in records if "train_loss" in r}
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    watched = [r for r in records if "val_loss_random" in r]
    assert [r["step"] for r in watched] == [3, 6]
    assert {"val_loss_smallest", "val_loss_largest"} <= watched[0].keys()
    assert any("sampled_params_p50" in r for r in records)


def test_a_finished_run_repeats_nothing(copied, llmnas):
    """Only the report, the manifest's time of it and the pictures are written again."""
    before = files_of(copied.folder)
    done = llmnas("run", copied.config, "--run-dir", copied.folder, "--resume")
    assert done.code == 0, done.err
    after = files_of(copied.folder)
    changed = {name for name in after if after[name] != before.get(name) and not name.endswith(("-wal", "-shm"))}
    rewritten = {"config.yaml", "report.html", "front.png", "curves.png", "manifest.json", "pareto.json"}
    assert changed <= rewritten | {"retrain/result.json", "evaluations.sqlite"}
    assert "Found against hand-designed" in done.out
    assert (
        done.out.split("Pareto front")[1].split("report:")[0].split("exported")[0]
        == (copied.done.out.split("Pareto front")[1].split("exported")[0])
    )


def test_without_resume_a_folder_in_use_is_refused(copied, llmnas):
    for verb in ("run", "prepare", "train", "search", "retrain", "report"):
        done = llmnas(verb, copied.config, "--run-dir", copied.folder)
        assert done.code == 2
        assert "--resume" in done.complaint


@pytest.mark.full
def test_another_training_alone_is_exported_anew(copied, llmnas):
    """An export of weights that are no longer the result would be silently wrong."""
    folder = next((copied.folder / "export").iterdir())
    before = (folder / "model.safetensors").read_bytes()
    done = llmnas(
        "run", copied.config, "--run-dir", copied.folder, "--resume", "--set", "retrain.train.steps=5",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert (folder / "model.safetensors").read_bytes() != before
    assert "Tokens seen: 640." in (folder / "README.md").read_text()


def test_export_replaces_only_when_forced(copied, llmnas):
    before = files_of(copied.folder / "export")
    done = llmnas("export", copied.config, "--run-dir", copied.folder)
    assert done.code == 2
    assert os.fspath(copied.folder / "export") in done.complaint
    assert files_of(copied.folder / "export") == before


@pytest.mark.full
def test_export_replaces_when_forced(copied, llmnas):
    before = files_of(copied.folder / "export")
    assert llmnas("export", copied.config, "--run-dir", copied.folder, "--force").code == 0
    after = files_of(copied.folder / "export")
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in after)
