"""Two real processes of a verb, one of them killed or stopped: the other ends with one line that names it."""

import signal
import socket
import subprocess
import time

import pytest
import tiny

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]
PATIENCE = 0.1  # minutes
TRAIN = ["train", "--prepare", "--set", "train.steps=1000000"]
SEARCH = ["search", "--set", "search.evaluations=2000000"]


@pytest.fixture
def launch(tmp_path):
    """Start a verb in two processes, as a launcher does; nothing ends one because the other has ended."""
    started = []

    def start(verb, config, folder, *options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in (0, 1):
            place = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_SIZE": 2, "MASTER_PORT": port}
            environment = tiny.environment(MASTER_ADDR="127.0.0.1", **{name: str(v) for name, v in place.items()})
            command = [verb, config, "--run-dir", folder, "--set", f"train.patience_minutes={PATIENCE}", *options]
            with (tmp_path / f"err{rank}").open("w") as err:
                process = subprocess.Popen(tiny.command(*command), env=environment, stderr=err)
            process.said = tmp_path / f"err{rank}"
            started.append(process)
        return started

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_until(reached, processes):
    deadline = time.monotonic() + 300
    while not reached():
        assert all(process.poll() is None for process in processes), [p.said.read_text()[-2000:] for p in processes]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def line_of(process):
    """Its one line; it has to end with 1."""
    assert process.wait(timeout=120) == 1
    return tiny.Done(1, "", process.said.read_text()).complaint


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("verb", ["train", "search"])
def test_who_is_killed_or_stopped_is_named(tiny_run, tmp_path, launch, verb, number, victim):
    folder = tmp_path / "run"
    if verb == "search":
        done = tiny.run("train", tiny_run.config, "--prepare", "--run-dir", folder)
        assert done.code == 0, done.err
    name, *options = TRAIN if verb == "train" else SEARCH
    processes = launch(name, tiny_run.config, folder, *options)
    begun = folder / "evaluations.sqlite" if verb == "search" else folder / "supernet" / "checkpoints" / "step-00000004"
    wait_until(begun.exists, processes)
    time.sleep(1)
    lost, other = processes[victim], processes[1 - victim]
    lost.send_signal(number)
    line = line_of(other)
    where = "step " if verb == "train" else "search: "
    assert line.startswith(f"llmnas: rank {1 - victim}: {where}")
    named = f"rank {victim} on {socket.gethostname()} (process {lost.pid})"
    assert f"{named} {'is gone' if number == signal.SIGKILL else 'has given no sign of life for'}" in line
    assert "; start again with --resume" in line
    if number == signal.SIGSTOP:  # it goes on, and hears that it was given up
        lost.send_signal(signal.SIGCONT)
        assert f"rank {1 - victim} on {socket.gethostname()} (process {other.pid}) ended: {named}" in line_of(lost)


def test_who_stops_while_the_others_wait_for_its_tokens_is_named(tmp_path, launch):
    config = tiny.write_config(tmp_path, tiny.write_corpus(tmp_path / "text", 400), data={"validation": 0.25})
    sets = ["--set", "space.base.vocab_size=3000", "--set", "budget.max_params=1000000"]
    processes = launch("train", config, tmp_path / "run", "--prepare", *sets)
    wait_until((tmp_path / "run" / "processes" / "rank1.json").exists, processes)
    processes[0].send_signal(signal.SIGSTOP)
    line = line_of(processes[1])
    assert line.startswith(
        f"llmnas: rank 1: prepare: rank 0 on {socket.gethostname()} (process {processes[0].pid}) has"
    )


def test_who_fails_while_the_others_wait_is_named_with_its_reason(tmp_path, launch):
    config = tiny.write_config(tmp_path, tiny.write_corpus(tmp_path / "text", 1))
    processes = launch("train", config, tmp_path / "run", "--prepare")
    line = line_of(processes[1])
    assert "llmnas: rank 1: prepare: rank 0 on " in line
    assert "ended: a corpus of 1 different document(s) cannot be split" in line
    assert processes[0].wait(timeout=60) == 2
