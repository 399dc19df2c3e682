"""Sweeps report: real W&B against a recording server on loopback, and what is said where it cannot."""

import json
import subprocess
import sys

import pytest
import tiny
from wandb_server import ENTITY, PROJECT, Server

from llmnas.errors import UserError
from llmnas.tracking import Tracker, require_account, wandb_mode

_NAMES = ("WANDB_MODE", "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_PROJECT", "WANDB_API_KEY", "WANDB_BASE_URL")


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """An environment that knows nothing of W&B, and a home without its files."""
    for name in _NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    return monkeypatch


@pytest.mark.parametrize("asked", ["auto", "off", "offline", "online"])
@pytest.mark.parametrize("sweep", ["", "abc"])
@pytest.mark.parametrize(
    ("said", "means"),
    [("", None), ("online", "online"), ("run", "online"), ("offline", "offline"), ("dryrun", "offline"),
     ("disabled", "off")],
)  # fmt: skip
def test_the_mode_is_the_environments_then_the_configs_then_that_of_the_sweep(bare, asked, sweep, said, means):
    bare.setenv("WANDB_MODE", said)
    bare.setenv("WANDB_SWEEP_ID", sweep)
    expected = means or ({"auto": "online" if sweep else "offline"}.get(asked, asked))
    assert wandb_mode(asked) == ("off" if asked == "off" else expected)


def test_a_mode_that_wandb_does_not_know_is_one_line(bare, tmp_path):
    bare.setenv("WANDB_MODE", "onlin")
    with pytest.raises(UserError, match="WANDB_MODE: 'onlin' is no mode of W&B; allowed: online,"):
        Tracker(tmp_path, "auto", "p", {})


def test_a_sweep_without_project_or_key_says_what_to_type(bare, tmp_path):
    bare.setenv("WANDB_BASE_URL", "http://wandb.example:8080")
    bare.setenv("WANDB_SWEEP_ID", "abc")
    with pytest.raises(UserError) as error:
        require_account()
    assert "type `wandb agent ENTITY/PROJECT/abc`, or `export WANDB_PROJECT=NAME`" in str(error.value)
    bare.setenv("WANDB_PROJECT", "p")
    with pytest.raises(UserError) as error, Tracker(tmp_path / "run", "auto", "p", {}):
        pytest.fail("began")
    assert "no API key for wandb.example; type `wandb login` or `export WANDB_API_KEY=KEY`" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
    (tmp_path / ".netrc").write_text("machine wandb.example\n  login user\n  password 0123456789\n")
    require_account()
    (tmp_path / ".netrc").unlink()
    bare.setenv("WANDB_API_KEY", "0123456789")
    require_account()


SCRIPT = """
import sys
from pathlib import Path
from llmnas.tracking import Tracker
with Tracker(Path(sys.argv[1]), "auto", "llmnas", {"seed": 3, "train": {"lr": 0.5}}) as tracker:
    for step in (1, 2):
        tracker.log("supernet", step, {"train_loss": 3.0 - step})
"""


def test_a_trial_arrives_at_the_server_with_config_history_and_summary(tmp_path):
    with Server() as server:
        environment = tiny.environment(
            **server.environment(), WANDB_SWEEP_ID="abc", WANDB_RUN_ID="trial7", WANDB_PROJECT=PROJECT
        )
        environment.pop("WANDB_MODE", None)
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "run")], env=environment, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr[-2000:]
    assert server.strange == []
    assert server.operations["UpsertBucket"] >= 1
    (run,) = server.runs.values()
    assert (run.name, run.sweep, run.exit_code) == ("trial7", "abc", 0)
    assert (run.config["seed"], run.config["train"]) == (3, {"lr": 0.5})
    curve = [(row["supernet/step"], row["supernet/train_loss"]) for row in run.history]
    assert curve == [(1, 2.0), (2, 1.0)]
    assert run.summary["supernet/train_loss"] == 1.0


@pytest.mark.full
@pytest.mark.timeout(3000)  # two trials beside busy neighbours
def test_an_agent_with_two_trials_runs_to_the_end_and_each_reports(tmp_path):
    """W&B's own agent, `llmnas train --prepare` on real speeches; the second trial takes the tokens of the first."""
    config = tiny.write_config(tmp_path, tiny.write_corpus(tmp_path / "corpus"), tracking={"wandb": "auto"})
    sweep = {
        "method": "grid", "metric": {"name": "supernet/val_loss_random", "goal": "minimize"},
        "parameters": {"train.lr": {"values": [0.01, 0.02]}},
        "command": ["${env}", sys.executable, "-m", "llmnas.cli", "train", str(config), "--prepare", "${args}"],
    }  # fmt: skip
    trials = [{"train.lr": 0.01}, {"train.lr": 0.02}]
    with Server(trials, sweep) as server:
        environment = tiny.environment(**server.environment(), HOME=str(tmp_path))
        for name in ("WANDB_MODE", "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_PROJECT"):
            environment.pop(name, None)
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "agent", f"{ENTITY}/{PROJECT}/abc"], env=environment, cwd=tmp_path,
            capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert server.strange == []
    assert sorted(server.runs) == ["trial0", "trial1"], done.stderr[-3000:]
    for values, run in zip(trials, (server.runs["trial0"], server.runs["trial1"]), strict=True):
        folder = tmp_path / "runs" / "tiny" / run.name
        assert (run.sweep, run.exit_code) == ("abc", 0), done.stderr[-3000:]
        assert run.config["train"]["lr"] == values["train.lr"]
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = {r["step"]: r["train_loss"] for r in records if "train_loss" in r}
        told = {row["supernet/step"]: row["supernet/train_loss"] for row in run.history if "supernet/train_loss" in row}
        assert told == pytest.approx(losses)
        last = [r["val_loss_random"] for r in records if "val_loss_random" in r][-1]
        assert run.summary[sweep["metric"]["name"]] == pytest.approx(last)
    first, second = (tmp_path / "runs" / "tiny" / name / "data" for name in ("trial0", "trial1"))
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert all((first / name).samefile(second / name) for name in names)
