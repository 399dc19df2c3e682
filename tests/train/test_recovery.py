"""A training whose loss runs away: warned of, stopped, or gone back; gone back is a run that can be replayed."""

import json
import logging
import os
import shutil

import numpy as np
import pytest
import torch
from planned_rises import Planned
from train_script import SEQUENCES, SETTINGS, SPACE, run

from llmnas.errors import Preempted, RunError, UserError
from llmnas.files import write_json
from llmnas.supernet import Transformer
from llmnas.train.checkpoint import Checkpoints, name_of, saved_steps
from llmnas.train.engine import Engine, start_processes
from llmnas.train.recovery import FILE, MOST, Recovery, Steps, stored
from llmnas.train.sampling import SupernetSampler
from llmnas.train.schedule import learning_rate
from llmnas.train.settings import TrainSettings
from llmnas.train.trainer import train

WILD = {"lr": 100.0, "warmup": 0.0, "steps": 8, "save_every": 2, "grad_clip": 1e9}


def settings_of(**changes):
    return TrainSettings(**{**SETTINGS.model_dump(), **changes})


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def planned(monkeypatch):
    def plan(**rises):
        monkeypatch.setattr(Planned, "rises", {int(step[1:]): calm for step, calm in rises.items()})
        monkeypatch.setattr("llmnas.train.trainer.Divergence", Planned)

    return plan


def test_steps_can_be_gone_back_over():
    steps, seen = Steps(2, 6), []
    for step in steps:
        seen.append(step)
        if seen == [2, 3, 4, 5]:
            steps.back(3)
    assert seen == [2, 3, 4, 5, 3, 4, 5]


def test_a_wild_rate_is_warned_of_at_once(tmp_path, caplog):
    run(tmp_path, settings_of(**WILD))
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 1
    assert "above 4.159, that of guessing uniformly; training goes on (train.on_divergence: warn)" in lines[0]
    assert int(lines[0].split()[1].rstrip(":")) <= 2


def test_stop_names_the_newest_good_checkpoint_and_puts_the_others_aside(tmp_path, planned):
    planned(s7=5)
    with pytest.raises(RunError, match=rf"^step 7: planned: the last good checkpoint is {tmp_path}/step-00000004; "):
        run(tmp_path, settings_of(on_divergence="stop", steps=12, save_every=2, keep=4))
    assert saved_steps(tmp_path) == [2, 4]
    assert (tmp_path / "step-00000006.diverged").exists()


def test_nothing_good_is_left(tmp_path, planned):
    planned(s3=1)
    with pytest.raises(RunError, match="step 3: planned: no checkpoint from before the rise is left"):
        run(tmp_path, settings_of(on_divergence="stop", save_every=2))


def expected(folder, *parts):
    """Weights of a run whose rates are written out by hand: (first step, end, factor) of every part."""
    settings = settings_of(steps=12, save_every=100)

    def rate(step, _):
        factor = np.prod([part[2] for part in parts if part[0] <= step < part[1]])
        return learning_rate(step, settings) * float(factor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmnas.train.recovery.learning_rate", rate)
        return weights(run(folder, settings))


@pytest.mark.parametrize(
    ("rises", "parts"),
    [
        ({"s7": 5}, [(4, 12, 0.25)]),
        ({"s2": 0}, [(0, 6, 0.25)]),  # to the weights that it began with
        ({"s11": 9}, [(8, 16, 0.25)]),  # in the last step
        ({"s5": 4, "s8": 7}, [(4, 8, 0.25), (6, 12, 0.25)]),
    ],
    ids=str,
)
def test_going_back_is_a_run_with_lower_rates_there(tmp_path, planned, rises, parts, caplog):
    """To the last bit: nothing of the part that was given up is left, whatever the engine did in it."""
    planned(**rises)
    losses = {}
    settings = settings_of(on_divergence="rewind", rewind_lr=0.25, steps=12, save_every=2)
    found = run(tmp_path / "a", settings, log=lambda step, metrics: losses.update({step: metrics}))
    assert [(item.start, item.end, item.lr) for item in stored(tmp_path / "a")] == parts
    assert same(weights(found), expected(tmp_path / "b", *parts))
    assert len(losses) == 12
    first = parts[0]
    assert f"back to step {first[0]}, with 0.25 times the learning rate until step {first[1]}" in caplog.text
    for step in range(12):
        factor = np.prod([part[2] for part in parts if part[0] <= step < part[1]])
        assert losses[step + 1]["lr"] == pytest.approx(learning_rate(step, settings) * factor, rel=1e-12)


def damaging(monkeypatch, *steps):
    """Checkpoints of these steps have one bit changed when the loss has run away."""
    look = Recovery.look

    def damage(self, step, means, result):
        if step in Planned.rises:
            for bad in steps:
                path = max((self._folder / name_of(bad)).rglob("*.pt"), key=lambda file: file.stat().st_size)
                content = bytearray(path.read_bytes())
                content[len(content) // 2] ^= 1
                path.write_bytes(content)
        return look(self, step, means, result)

    monkeypatch.setattr(Recovery, "look", damage)


def test_a_damaged_checkpoint_is_not_gone_back_to(tmp_path, planned, monkeypatch, caplog):
    planned(s7=5)
    damaging(monkeypatch, 4)
    settings = settings_of(on_divergence="rewind", rewind_lr=0.25, steps=12, save_every=2, keep=8)
    found = run(tmp_path / "a", settings)
    assert [(item.start, item.end) for item in stored(tmp_path / "a")] == [(2, 14)]
    assert "step-00000004" in caplog.text
    assert "back to step 2, with 0.25 times the learning rate until step 14" in caplog.text
    monkeypatch.undo()
    assert same(weights(found), expected(tmp_path / "b", (2, 14, 0.25)))


def test_a_checkpoint_damaged_while_it_is_gone_back_to_is_not_said_to_be_loaded(tmp_path, planned, monkeypatch):
    """Between the look at it and its loading: the older one that is loaded is the one that counts."""
    planned(s7=5)
    damaging(monkeypatch, 4)
    monkeypatch.setattr(Checkpoints, "damage", lambda *_: None)
    settings = settings_of(on_divergence="rewind", rewind_lr=0.25, steps=12, save_every=2, keep=8)
    found = run(tmp_path / "a", settings)
    assert [(item.start, item.end) for item in stored(tmp_path / "a")] == [(2, 14)]
    monkeypatch.undo()
    assert same(weights(found), expected(tmp_path / "b", (2, 14, 0.25)))


def test_stop_names_no_damaged_checkpoint(tmp_path, planned, monkeypatch):
    planned(s7=5)
    damaging(monkeypatch, 4)
    with pytest.raises(RunError, match=rf"^step 7: planned: the last good checkpoint is {tmp_path}/step-00000002; "):
        run(tmp_path, settings_of(on_divergence="stop", steps=12, save_every=2, keep=8))
    assert saved_steps(tmp_path) == [2]


@pytest.mark.parametrize(("stop", "time"), [(3, 1), (5, 1), (7, 1), (5, 2), (6, 2), (9, 1)])
def test_a_run_that_went_back_goes_on_exactly(tmp_path, planned, stop, time):
    settings = settings_of(on_divergence="rewind", steps=12, save_every=2)
    planned(s7=5)
    alone = run(tmp_path / "alone", settings)
    planned(s7=5)
    seen = []

    def log(step, metrics):
        seen.append(step)
        if step == stop and seen.count(step) == time:
            os.kill(os.getpid(), 15)

    with pytest.raises(Preempted):
        run(tmp_path / "cut", settings, log=log)
    assert same(weights(run(tmp_path / "cut", settings)), weights(alone))
    assert stored(tmp_path / "cut") == stored(tmp_path / "alone")


def test_a_kill_between_putting_aside_and_writing_down_does_the_same_again(tmp_path, planned, monkeypatch):
    settings = settings_of(on_divergence="rewind", steps=12, save_every=2, keep=4)
    planned(s7=3)
    alone = run(tmp_path / "alone", settings)
    planned(s7=3)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("llmnas.train.recovery.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", settings)
    monkeypatch.setattr("llmnas.train.recovery.write_json", write_json)
    assert saved_steps(tmp_path / "cut") == [0, 2]
    planned(s7=3)
    assert same(weights(run(tmp_path / "cut", settings)), weights(alone))
    assert stored(tmp_path / "cut") == stored(tmp_path / "alone")


def test_a_run_whose_rate_is_wrong_altogether_ends(tmp_path):
    settings = settings_of(**{**WILD, "lr": 1e6}, on_divergence="rewind", rewind_lr=0.9)
    with pytest.raises(RunError, match=rf"it was gone back {MOST} times: the last good checkpoint is .*step-00000000"):
        run(tmp_path, settings)
    assert len(stored(tmp_path)) == MOST


def test_gradients_that_are_not_finite_are_gone_back_from(tmp_path, monkeypatch):
    """A batch that gives NaN until the rate is lower, as weights that have run away do."""
    backward, rates, step = Engine.backward, [], Engine.step

    def poisoned(self, loss):
        backward(self, loss * (float("nan") if len(rates) in range(6, 9) else 1.0))

    def noted(self, lr, *rest):
        rates.append(lr)
        return step(self, lr, *rest)

    monkeypatch.setattr(Engine, "backward", poisoned)
    monkeypatch.setattr(Engine, "step", noted)
    settings = settings_of(on_divergence="rewind", rewind_lr=0.25, steps=12, save_every=2, skip_limit=3)
    found = run(tmp_path / "a", settings)
    (rewind,) = stored(tmp_path / "a")
    assert rewind.why == "step 8: no finite gradient in the last 3 steps"
    assert (rewind.start, rewind.end) == (4, 14)
    monkeypatch.undo()
    assert same(weights(found), expected(tmp_path / "b", (4, 14, 0.25)))


def test_without_checkpoints_it_stops(planned):
    planned(s3=2)
    settings = settings_of(on_divergence="rewind", steps=6)
    model, sampler = Transformer(SPACE, seed=0), SupernetSampler(SPACE, None, settings.sampler, 0)
    with pytest.raises(RunError, match="step 3: planned: this run keeps no checkpoints"):
        train(model, sampler, SEQUENCES, settings, start_processes())


@pytest.mark.parametrize("text", ["", "[", "{}", '[{"start": 1}]', '[{"start": 4, "end": 8, "lr": -1, "why": ""}]'])
def test_a_damaged_record_is_refused_by_name(tmp_path, planned, text):
    settings = settings_of(on_divergence="rewind", steps=12, save_every=2)
    planned(s7=5)
    run(tmp_path / "a", settings)
    shutil.rmtree(tmp_path / "a" / "step-00000012")
    assert json.loads((tmp_path / "a" / FILE).read_text())[0]["start"] == 4
    (tmp_path / "a" / FILE).write_text(text)
    with pytest.raises(UserError, match=f"{FILE}: damaged; delete it to go on with the full rate"):
        run(tmp_path / "a", settings)
