"""The number of threads: the faster one, written down, switched at checkpoints only, replayed bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_darts import equal, final, prepared, settings_of
from threads_script import AUTO, BUSY, QUIET, Machine
from train_script import SEQUENCES, SETTINGS, SPACE

from llmnas.errors import UserError
from llmnas.space import SearchSpace
from llmnas.supernet import Transformer
from llmnas.train import threads, trainer
from llmnas.train.checkpoint import saved_steps
from llmnas.train.darts import search_relaxed
from llmnas.train.darts_settings import DartsSettings
from llmnas.train.engine import start_processes
from llmnas.train.processes import Processes
from llmnas.train.sampling import SupernetSampler
from llmnas.train.threads import DECISIVE, FILE, ROUNDS, WINDOW, set_threads, stored


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def short(**changes):
    return AUTO.model_copy(update={"steps": 3, **changes})


@pytest.mark.parametrize(("seconds", "faster"), [(QUIET, 2), (BUSY, 1), ({1: 1.0, 2: 1.2}, 1)])
def test_the_faster_number_is_kept_and_written_down(seconds, faster, tmp_path):
    machine = Machine(quiet=seconds)
    machine.train(tmp_path, short())
    assert set(machine.steps.values()) == {faster}
    (choice,) = stored(tmp_path)
    assert (choice.step, choice.threads) == (0, faster)
    assert choice.seconds == pytest.approx(seconds)


@pytest.mark.parametrize(("two", "rounds"), [(1.5, ROUNDS), (1.01 * DECISIVE, 1)])
def test_a_number_that_is_much_slower_is_timed_once(two, rounds, tmp_path, monkeypatch):
    tried, plain = [], threads.Threads._timed
    monkeypatch.setattr(threads.Threads, "_timed", lambda self, n, step: tried.append(n) or plain(self, n, step))
    Machine(quiet={1: 1.0, 2: two}).train(tmp_path, short())
    assert tried == [1] + rounds * [1, 2]


@pytest.mark.parametrize(("number", "used"), [(1, 1), (2, 2), (0, 2)])
def test_an_explicit_number_is_neither_measured_nor_changed(number, used, tmp_path):
    machine = Machine(busy_from=2)
    machine.train(tmp_path, AUTO.model_copy(update={"threads": number}))
    assert set(machine.steps.values()) == {used}
    assert not (tmp_path / FILE).exists()


def test_one_core_leaves_nothing_to_choose(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    machine = Machine()
    machine.train(tmp_path, short())
    assert set(machine.steps.values()) == {1}
    assert not (tmp_path / FILE).exists()


KINDS = {
    "one network": {},
    "stage 1": {"zero_stage": 1},
    "stage 2": {"zero_stage": 2},
    "stage 3 is not measured": {"zero_stage": 3},
    "distilled": {"sampler": {"kind": "sandwich"}, "shared_batch": True, "distill": {"weight": 0.5}},
    "micro-batches": {"micro_batch": 2, "checkpoint_blocks": True},
    "attentive": {
        "sampler": {"kind": "uniform", "distribution": "uniform", "attentive": {"pick": "worst", "start": 2}}
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_measuring_leaves_no_trace(kind, tmp_path):
    """Weights, losses and the global generator are those of a run with one thread that nobody measured."""
    options = {**SETTINGS.model_dump(), "steps": 5, **KINDS[kind]}
    found = []
    for number in ("auto", 1):
        torch.manual_seed(0)
        losses = []
        model = Machine(quiet=BUSY).train(
            tmp_path / str(number),
            type(SETTINGS).model_validate({**options, "threads": number}),
            log=lambda _, m, losses=losses: losses.append((m["train_loss"], m["grad_norm"])),
        )
        found.append((losses, model.state_dict(), torch.get_rng_state()))
    (losses, weights, state), (other, same, untouched) = found
    assert (tmp_path / "auto" / FILE).exists() == (kind != "stage 3 is not measured")
    if kind == "stage 3 is not measured":  # both threads, which the run with one has not
        return
    assert losses == other
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert torch.equal(state, untouched)


def test_measuring_moves_no_router(tmp_path):
    """Biases that balance experts move once a step, by what the step's own tokens did."""
    wide = {**SPACE.model_dump(), "experts": [2, 4]}
    space = SearchSpace.from_dict(wide)
    found = []
    for number in ("auto", 1):
        settings = type(SETTINGS).model_validate(
            {**SETTINGS.model_dump(), "steps": 4, "threads": number, "moe": {"balance": "bias", "bias_rate": 0.1}}
        )
        model, sampler = Transformer(space, seed=0), SupernetSampler(space, None, settings.sampler, seed=0)
        with Machine(quiet=BUSY).clock():
            trainer.train(model, sampler, SEQUENCES, settings, start_processes())
        found.append(model.state_dict())
    assert any(float(found[0][name].abs().max()) > 0 for name in found[0] if name.endswith("balance"))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_measuring_moves_neither_weights_nor_alpha(tmp_path):
    """Of a differentiable search, whose steps train one mixture of all networks."""
    found = []
    for number in ("auto", 1):
        search = prepared(settings_of(threads=number), DartsSettings())
        with Machine(quiet=BUSY).clock():
            search_relaxed(search, folder=tmp_path / str(number), identity="a")
        found.append(final(search))
    assert stored(tmp_path / "auto")[0].threads == 1
    assert equal(*found)


def test_slower_steps_are_looked_at_again_and_the_switch_is_at_a_checkpoint(tmp_path):
    machine = Machine(busy_from=12)
    machine.train(tmp_path)
    first, second = stored(tmp_path)
    assert (first.threads, second.threads) == (2, 1)
    assert 12 + WINDOW // 2 <= second.step <= 12 + WINDOW
    assert second.step in saved_steps(tmp_path)
    assert machine.steps == {step: 2 if step <= second.step else 1 for step in range(1, 33)}


def test_a_quiet_machine_is_noticed_too(tmp_path):
    machine = Machine(quiet=BUSY)
    idle = {1: 0.5, 2: 0.3}
    machine.train(tmp_path, log=lambda step, _: machine.__setattr__("seconds", idle if step > 12 else BUSY))
    assert [choice.threads for choice in stored(tmp_path)] == [1, 2]


def test_a_first_look_in_the_rush_of_a_start_is_looked_at_again(tmp_path):
    """Measured beside others that start too; from the first step on the machine is quiet, so no pace ever changes."""
    machine = Machine(quiet=BUSY)
    machine.train(tmp_path, log=lambda *_: machine.__setattr__("seconds", QUIET))
    first, second = stored(tmp_path)
    assert (first.threads, second.threads) == (1, 2)
    assert second.step <= 2 * WINDOW
    assert second.step in saved_steps(tmp_path)


def test_a_small_gain_is_no_switch(tmp_path):
    """All steps become slower, and one thread is 5 % faster then: what holds stays."""
    machine = Machine()
    slow = {1: 2.0, 2: 2.1}
    machine.train(tmp_path, log=lambda step, _: machine.__setattr__("seconds", slow if step > 12 else QUIET))
    assert {choice.threads for choice in stored(tmp_path)} == {2}


@pytest.mark.parametrize("stop", [15, 21, *(pytest.param(step, marks=pytest.mark.full) for step in (5, 19, 25))])
def test_a_run_that_is_cut_off_replays_its_switches(stop, tmp_path, monkeypatch):
    """Cut off before, just before, just after and long after the switch; the machine is another one when it goes on."""
    whole = Machine(busy_from=12)
    weights = whole.train(tmp_path / "whole").state_dict()
    monkeypatch.setattr(threads.Threads, "look", lambda *_: pytest.fail("a replay never looks"))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for step in saved_steps(tmp_path / "cut"):
        if step > stop:
            shutil.rmtree(tmp_path / "cut" / f"step-{step:08d}")
    first = max([0, *saved_steps(tmp_path / "cut")])
    other = Machine(quiet={1: 1.5, 2: 7.0})
    again = other.train(tmp_path / "cut").state_dict()
    assert other.steps == {step: number for step, number in whole.steps.items() if step > first}
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_killed_after_the_switch_and_started_again_is_the_undisturbed_run(tmp_path):
    """SIGKILL: what goes on and what is never disturbed agree to the last bit, the schedule being the same."""
    script = [sys.executable, str(Path(__file__).with_name("threads_script.py"))]

    def start(folder, *die_after):
        return subprocess.run([*script, folder, *die_after], env={**os.environ, "DS_ACCELERATOR": "cpu"}).returncode

    cut, calm = tmp_path / "cut", tmp_path / "calm"
    cut.mkdir()
    assert start(cut, "25") == -signal.SIGKILL
    assert start(cut) == 0
    (calm / "checkpoints").mkdir(parents=True)
    shutil.copy(cut / "checkpoints" / FILE, calm / "checkpoints")
    assert start(calm) == 0
    lines = [json.loads(line) for line in (cut / "log.jsonl").read_text().splitlines()]
    assert {number for _, _, number in lines} == {1, 2}
    final = {step: rest for step, *rest in lines}  # a step that was done twice counts as it was done last
    assert final == {step: rest for step, *rest in map(json.loads, (calm / "log.jsonl").read_text().splitlines())}
    ours, theirs = (load_file(folder / "weights.safetensors") for folder in (cut, calm))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_one_core_replays_what_two_have_chosen_and_another_number_of_processes_does_not(tmp_path, monkeypatch):
    Machine().train(tmp_path, short())
    assert stored(tmp_path, 1) == stored(tmp_path)
    assert stored(tmp_path, 2) == []
    for step in saved_steps(tmp_path):
        shutil.rmtree(tmp_path / f"step-{step:08d}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    again = Machine(quiet=BUSY)
    again.train(tmp_path, short())
    assert set(again.steps.values()) == {2}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        '{"processes": 1, "choices": []}',
        '{"processes": 1, "choices": [{"step": -1, "threads": 1, "seconds": {}}]}',
    ],
)
def test_a_damaged_record_is_named(text, tmp_path):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match=r"threads\.json: damaged; delete it to measure"):
        Machine().train(tmp_path, short())


def test_work_that_trains_nothing_takes_the_number_that_was_found(tmp_path):
    alone = Processes(0, 1, 0, 1)
    set_threads(AUTO, alone, tmp_path)
    assert torch.get_num_threads() == 2
    Machine(quiet=BUSY).train(tmp_path, short())
    set_threads(AUTO, alone, tmp_path)
    assert torch.get_num_threads() == 1
    set_threads(AUTO.model_copy(update={"threads": 2}), alone, tmp_path)
    assert torch.get_num_threads() == 2
