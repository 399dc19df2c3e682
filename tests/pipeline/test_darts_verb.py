"""`llmnas train --method darts` from text to archive, its resume, and what a user does wrong."""

import json
import shutil

import pytest
import tiny
import yaml

from llmnas.archive import read_archive

SECTION = {"trace_every": 2, "alpha_lr": 0.1, "only": {"depth": [2]}}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("darts")
    config = tiny.write_config(folder, tiny.write_corpus(folder / "text"))
    values = yaml.safe_load(config.read_text())
    values["darts"] = SECTION
    config.write_text(yaml.safe_dump(values, sort_keys=False))
    return config


@pytest.fixture(scope="module")
def trained(project):
    run = project.parent / "run"
    done = tiny.run("train", project, "--method", "darts", "--prepare", "--run-dir", run)
    assert done.code == 0, done.err
    return tiny.Run(project, run, done)


def test_what_was_decoded_is_in_the_archive(trained):
    found = json.loads((trained.folder / "darts" / "result.json").read_text())
    _, _, evaluations = read_archive(trained.folder / "evaluations.sqlite")
    assert [e.arch.to_dict() for e in evaluations] == found["architectures"]
    assert evaluations[-1].arch.id == found["decoded"]
    assert evaluations[-1].arch.depth == 2
    assert all(e.metrics["params"] <= 14000 for e in evaluations)
    assert [point["step"] for point in found["trace"]] == [2, 4, 6]
    assert found["decoded"] in trained.done.out
    logged = (trained.folder / "metrics.jsonl").read_text()
    for metric in ("alpha_eigenvalue", "alpha_loss", "expected_params", "val_loss_decoded", "parameter_free_share"):
        assert metric in logged


def test_the_search_goes_on_from_the_decoded_ones_and_the_report_has_them(trained, llmnas, tmp_path):
    run = shutil.copytree(trained.folder, tmp_path / "run")
    _, _, decoded = read_archive(run / "evaluations.sqlite")
    done = llmnas("search", trained.config, "--run-dir", run, "--resume")
    assert done.code == 0, done.err
    _, _, evaluations = read_archive(run / "evaluations.sqlite")
    assert len(evaluations) == 12
    assert evaluations[: len(decoded)] == decoded
    done = llmnas("report", trained.config, "--run-dir", run)
    assert done.code == 0, done.err
    assert decoded[-1].arch.id in (run / "report.html").read_text()


def test_a_finished_run_is_complete_already(trained, llmnas):
    before = (trained.folder / "darts" / "result.json").read_bytes()
    done = llmnas("train", trained.config, "--method", "darts", "--run-dir", trained.folder, "--resume")
    assert done.code == 0, done.err
    assert (trained.folder / "darts" / "result.json").read_bytes() == before


def test_what_training_cost_is_known_wherever_it_was_stopped(trained, llmnas, tmp_path, monkeypatch):
    """As that of other supernets: weights without a record of their training would never get one."""
    run = shutil.copytree(trained.folder, tmp_path / "run")
    weights, manifest = run / "supernet" / "model.safetensors", run / "manifest.json"
    before, whole = json.loads(manifest.read_text()), weights.read_bytes()
    noted = before["stages"].pop("train")
    del before["sha256"]
    manifest.write_text(json.dumps(before))
    weights.unlink()

    def stopped(*_):
        raise KeyboardInterrupt

    arguments = ("train", trained.config, "--method", "darts", "--run-dir", run, "--resume")
    with monkeypatch.context() as patched:
        patched.setattr("llmnas.pipeline.darts.save_weights", stopped)
        assert llmnas(*arguments).code == 130
    assert json.loads(manifest.read_text())["stages"]["train"]["tokens"] == noted["tokens"]
    done = llmnas(*arguments)
    assert done.code == 0, done.err
    assert weights.read_bytes() == whole


def test_mistakes_are_one_line(trained, llmnas, tmp_path, tiny_run):
    train = ("train", trained.config, "--run-dir", tmp_path / "new")
    for arguments, complaint in [
        (("train", trained.config, "--run-dir", tmp_path / "other"), "darts: does nothing without --method darts"),
        ((*train, "--method", "gradients"), "gradients"),
        ((*train, "--method", "darts", "--set", "darts.only={mixer: [mlgru]}"),
         "darts.only: mixer: 'mlgru' is no choice of the space; allowed: attention"),
        ((*train, "--method", "darts", "--set", "space.experts=[1, 2]"), "experts cannot be mixed"),
        ((*train, "--method", "darts", "--set", "budget.max_params=100"), "max_params"),
        ((*train, "--method", "darts", "--set", "darts.early_stop=yes", "--set", "darts.trace_every=0"), "trace_every"),
        ((*train, "--method", "darts", "--set", "train.zero_stage=1"), "train.zero_stage = 1"),
        ((*train, "--method", "darts", "--set", "darts.lr=1"), "darts.lr: unknown key"),
        (("train", tiny_run.config, "--run-dir", tiny_run.folder, "--method", "darts", "--resume"),
         "trained without --method darts"),
        (("train", trained.config, "--run-dir", trained.folder, "--method", "darts", "--resume", "--set",
          "darts.alpha_lr=0.2"), "darts.alpha_lr: 0.1 -> 0.2"),
    ]:  # fmt: skip
        done = llmnas(*arguments)
        assert done.code == 2, (arguments, done)
        assert complaint in done.complaint
