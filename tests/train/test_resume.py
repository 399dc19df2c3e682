"""Nothing is lost: a run that was stopped, killed or damaged goes on bit for bit, or says which file is bad."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from train_script import SEQUENCES, SETTINGS, SPACE, run

from llmnas.errors import Preempted, UserError
from llmnas.files import sha256
from llmnas.supernet import Transformer
from llmnas.train import trainer
from llmnas.train.checkpoint import saved_steps, verify_checkpoint
from llmnas.train.engine import start_processes
from llmnas.train.sampling import SupernetSampler

ENV = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def start(folder, *die_after):
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("train_script.py")), folder, *die_after], env=ENV
    )


def log_of(folder):
    """{step: (loss, learning rate)} to the last bit; a step that was done again must give the same again."""
    found = {}
    for line in (folder / "log.jsonl").read_text().splitlines():
        step, *values = json.loads(line)
        assert found.setdefault(step, values) == values
    return found


def assert_same(folder, undisturbed):
    losses, weights = undisturbed
    assert log_of(folder) == losses
    found = load_file(folder / "weights.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(log, weights) of twelve steps straight, in this process and without checkpoints."""
    losses = {}
    model = run(None, log=lambda step, m: losses.update({step: [m["train_loss"].hex(), m["lr"].hex()]}))
    return losses, {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def undisturbed_process(tmp_path_factory):
    """(log, weights) of a process of its own that nobody kills: what killed and restarted processes must give."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert start(folder).wait() == 0
    return log_of(folder), load_file(folder / "weights.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run with checkpoints of the steps 9 and 12; tests copy it."""
    folder = tmp_path_factory.mktemp("trained") / "checkpoints"
    run(folder)
    assert saved_steps(folder) == [9, 12]
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "checkpoints")


@pytest.mark.full
def test_six_and_six_steps_are_twelve(tmp_path, undisturbed_process):
    first = start(tmp_path, "7")  # of which the last is lost: checkpoints are at 3 and 6
    assert first.wait() == -signal.SIGKILL
    assert saved_steps(tmp_path / "checkpoints") == [3, 6]
    assert sorted(log_of(tmp_path)) == [1, 2, 3, 4, 5, 6, 7]
    assert start(tmp_path).wait() == 0
    assert_same(tmp_path, undisturbed_process)


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.full)])
def test_killed_at_any_moment_and_restarted(tmp_path, undisturbed_process, kills):
    """In a step, while a checkpoint is written (where most of the time goes here), while it starts or restores."""
    checkpoints, log, moments = tmp_path / "checkpoints", tmp_path / "log.jsonl", random.Random(0)
    reached, saving, silent, start_up = set(), 0, 0, 0.0

    def lines():
        return len(log.read_text().splitlines()) if log.exists() else 0

    for attempt in range(kills):
        before, begun, process = lines(), time.monotonic(), start(tmp_path)
        if attempt % 4 == 2 or max(reached, default=0) >= 11:
            time.sleep(moments.uniform(0, 0.7) * start_up)
        else:
            aim = 12 * (attempt + 1) // (kills + 2)
            while process.poll() is None and (lines() == before or max(log_of(tmp_path)) < aim):
                time.sleep(0.0005)
            start_up = start_up or time.monotonic() - begun
            if attempt % 4 == 0:
                time.sleep(moments.uniform(0, 0.03))
            while attempt % 4 and process.poll() is None and not any(checkpoints.glob("*.partial")):
                pass
        process.kill()
        assert process.wait() == -signal.SIGKILL
        saving += any(checkpoints.glob("*.partial"))
        silent += lines() == before
        reached.add(max(log_of(tmp_path)))
    assert kills < 20 or (len(reached) >= 4 and saving >= 5 and silent >= 2)
    assert start(tmp_path).wait() == 0
    assert_same(tmp_path, undisturbed_process)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000011", "step-00000012"]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_goes_on_where_it_was(tmp_path, stage):
    settings = SETTINGS.model_copy(update={"zero_stage": stage})
    straight = run(tmp_path, settings).state_dict()
    shutil.rmtree(tmp_path / "step-00000012")
    steps = []
    resumed = run(tmp_path, settings, log=lambda step, _: steps.append(step)).state_dict()
    assert steps == [10, 11, 12]
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_another_stage_is_refused(folder):
    with pytest.raises(UserError, match=r"step-00000012: saved at ZeRO stage 0, now 2; use the same"):
        run(folder, SETTINGS.model_copy(update={"zero_stage": 2}))


@pytest.mark.parametrize(("steps", "expected"), [([], 1.0), ([9], 4.0), ([9, 12], None)])
def test_cpu_time_of_this_start_stands_for_the_steps_before_it(folder, steps, expected, monkeypatch):
    for gone in set(saved_steps(folder)) - set(steps):
        shutil.rmtree(folder / f"step-{gone:08d}")
    ticks = itertools.count()  # every look at the clock is a second after the one before
    monkeypatch.setattr(trainer, "time", SimpleNamespace(process_time=ticks.__next__))
    sampler = SupernetSampler(SPACE, None, SETTINGS.sampler, seed=0)
    model = Transformer(SPACE, seed=0)
    outcome = trainer.train(model, sampler, SEQUENCES, SETTINGS, start_processes(), folder=folder, identity="a")
    assert outcome.cpu_seconds == expected
    networks = SETTINGS.sampler.networks_per_step()
    assert outcome.tokens == SETTINGS.steps * networks * SETTINGS.batch_size * SETTINGS.seq_len


def test_a_finished_run_is_restored_without_a_step(folder, undisturbed):
    model = run(folder, log=lambda *_: pytest.fail("a step was trained"))
    assert all(torch.equal(parameter, undisturbed[1][name]) for name, parameter in model.named_parameters())


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def change_a_byte(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("mp_rank_00_model_states.pt", truncate),
        ("mp_rank_00_model_states.pt", change_a_byte),
        ("mp_rank_00_model_states.pt", Path.unlink),
        ("files.json", truncate),
        ("files.json", Path.unlink),
    ],
)
def test_a_damaged_file_is_named_and_the_checkpoint_before_it_gone_on_from(folder, name, damage, undisturbed, caplog):
    bad = folder / "step-00000012"
    damage(bad / name)
    steps = []
    model = run(folder, log=lambda step, _: steps.append(step))
    assert steps == [10, 11, 12]
    [message] = caplog.messages
    assert message.startswith(f"{bad / name}: ")
    assert message.endswith("moved to step-00000012.damaged, going on from the checkpoint of step 9")
    assert all(torch.equal(parameter, undisturbed[1][name]) for name, parameter in model.named_parameters())
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000009", "step-00000012"]


def test_without_a_whole_checkpoint_nothing_is_trained(folder):
    for step in (9, 12):
        change_a_byte(folder / f"step-{step:08d}" / "mp_rank_00_model_states.pt")
    with pytest.raises(UserError, match=r"no whole checkpoint is left in .*: delete it to train") as error:
        run(folder)
    assert str(error.value).startswith(f"{folder / 'step-00000012' / 'mp_rank_00_model_states.pt'}: content changed")
    assert saved_steps(folder) == [9, 12]


def test_the_hashes_of_a_checkpoint_are_those_of_its_files(folder):
    manifest = verify_checkpoint(folder / "step-00000012", "a")
    assert {name: file.sha256 for name, file in manifest.files.items()} == {
        path.name: sha256(path) for path in (folder / "step-00000012").iterdir() if path.name != "files.json"
    }


def test_sigterm_in_the_last_step_is_heard_and_the_next_start_has_nothing_left_to_do(tmp_path, undisturbed):
    with pytest.raises(Preempted, match=r"SIGTERM after the last step: .*step-00000012; start again with --resume"):
        run(tmp_path, log=lambda step, _: step == 12 and os.kill(os.getpid(), signal.SIGTERM))
    model = run(tmp_path, log=lambda *_: pytest.fail("a step was trained"))
    assert all(torch.equal(parameter, undisturbed[1][name]) for name, parameter in model.named_parameters())


def complaint(checkpoint):
    try:
        verify_checkpoint(checkpoint, "a")
    except UserError as error:
        return str(error)
    return ""


def test_every_byte_of_the_manifest_may_be_wrong(folder):
    """Refused in one line, or still the same files with the same hashes: never a traceback."""
    manifest = folder / "step-00000012" / "files.json"
    whole = manifest.read_bytes()
    expected = json.loads(whole)
    for at in range(len(whole)):
        manifest.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        message = complaint(manifest.parent)
        assert str(manifest.parent) in message or json.loads(manifest.read_bytes()) == expected


def test_a_checkpoint_of_another_run_is_refused(folder):
    with pytest.raises(
        UserError, match=r"step-00000012: a checkpoint of another run \(config a, now b\): .*another --run-dir"
    ):
        run(folder, identity="b")


def test_saves_that_were_cut_off_are_ignored_and_removed(folder, undisturbed):
    shutil.rmtree(folder / "step-00000012")
    for step in (12, 15):
        left = folder / f"step-{step:08d}.partial"
        left.mkdir()
        (left / "mp_rank_00_model_states.pt").write_bytes(b"half of")
    assert saved_steps(folder) == [9]
    model = run(folder)
    assert all(torch.equal(parameter, undisturbed[1][name]) for name, parameter in model.named_parameters())
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000009", "step-00000012"]


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_ones_are_kept(tmp_path, keep):
    run(tmp_path, SETTINGS.model_copy(update={"keep": keep}))
    assert saved_steps(tmp_path) == [3, 6, 9, 12][-keep:]
