"""Processes that watch each other: who dies or stands still is named by the others, whatever their main threads do."""

import json
import os
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from llmnas.distributed.beats import Writer, path_of, read
from llmnas.distributed.pulse import FOLDER, Pulse
from llmnas.errors import Preempted, RunError, UserError

HOST = socket.gethostname()
PATIENCE = 1.0


class Process:
    """A fork that watches, while its main thread waits for what never comes, as in a collective operation."""

    def __init__(self, folder, rank, size):
        self._said, self.status = folder.parent / f"said-{rank}-{time.monotonic()}", None
        self.pid = os.fork()
        if not self.pid:
            try:
                self._wait(folder, rank, size)
            finally:
                os._exit(70)

    def _wait(self, folder, rank, size):
        sys.stderr = self._said.open("w")
        with Pulse(folder, "launch", rank, size, PATIENCE, lambda: "a checkpoint is there") as pulse:
            pulse.at("step 7")
            os.read(os.pipe()[0], 1)

    def ended(self, patience=60):
        """(exit code, what it said); None where it has not ended in time."""
        deadline = time.monotonic() + patience
        while self.status is None and time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
            time.sleep(0.01)
        return None if self.status is None else (self.status, self._said.read_text())

    def send(self, number):
        if self.status is None:
            os.kill(self.pid, number)


@pytest.fixture
def processes(tmp_path):
    started = []

    def start(size, *ranks):
        started.extend(Process(tmp_path / FOLDER, rank, size) for rank in ranks or range(size))
        deadline = time.monotonic() + 60
        while sum(path.stat().st_size > 0 for path in (tmp_path / FOLDER).glob("rank*.json")) < size:
            assert time.monotonic() < deadline
        return started

    yield start
    for process in started:
        process.send(signal.SIGKILL)
        assert process.ended() is not None


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_process_is_named_by_all_that_live(processes, victim):
    every = processes(3)
    every[victim].send(signal.SIGKILL)
    assert every[victim].ended()
    for rank in {0, 1, 2} - {victim}:
        code, said = every[rank].ended()
        assert code == 1
        gone = f"rank {victim} on {HOST} (process {every[victim].pid}) is gone"
        assert said == f"llmnas: rank {rank}: step 7: {gone}; a checkpoint is there\n"


def test_a_stopped_process_is_named_and_hears_of_it_when_it_goes_on(processes):
    one, other = processes(2)
    other.send(signal.SIGSTOP)
    code, said = one.ended()
    assert code == 1
    silent = f"llmnas: rank 0: step 7: rank 1 on {HOST} (process {other.pid}) has given no sign of life for "
    assert said.startswith(silent)
    assert said.endswith(" s (train.patience_minutes); a checkpoint is there\n")
    other.send(signal.SIGCONT)
    code, said = other.ended()
    assert code == 1
    assert f"step 7: rank 0 on {HOST} (process {one.pid}) ended: rank 1 on {HOST}" in said


def test_processes_that_were_all_stopped_for_longer_go_on(processes):
    every = processes(2)
    for process in every:
        process.send(signal.SIGSTOP)
    time.sleep(2 * PATIENCE)
    for process in every:
        process.send(signal.SIGCONT)
    time.sleep(PATIENCE)
    assert [process.ended(0.1) for process in every] == [None, None]


def test_a_process_that_never_came_is_waited_for_no_longer(tmp_path, processes):
    (tmp_path / FOLDER).mkdir()
    left = {"rank": 1, "host": HOST, "process": os.getpid(), "started": 1, "marks": [], "ended": "long ago"}
    path_of(tmp_path / FOLDER, 1).write_text(json.dumps({"launch": "of yesterday", **left}))
    (one,) = processes(2, 0)
    code, said = one.ended()
    assert code == 1
    assert "step 7: rank 1 has given no sign of life for " in said


def other(folder, **values):
    """Another process of this launch, played by this one."""
    writer = Writer(folder, "launch", 1)
    writer.change(**values)
    return writer


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer"), "step 3: rank 1 on {} ended: it"),
        (RuntimeError("shapes differ"), None),
        (ValueError("connection"), None),
        (UserError("a connection"), None),
    ],
)
def test_a_lost_connection_names_who_ended_and_other_errors_stay(tmp_path, error, line):
    other(tmp_path, ended="it failed")
    pulse = Pulse(tmp_path, "launch", 0, 2, 600.0)
    pulse.at("step 3")
    with pytest.raises(type(error) if line is None else RunError) as raised, pulse:
        raise error
    if line is None:
        assert raised.value is error
    else:
        assert str(raised.value).startswith(line.format(f"{HOST} (process {os.getpid()})"))
    _, beat = read(tmp_path, 0, "launch")
    assert beat.ended


def test_the_others_wait_for_the_first_and_hear_that_it_failed(tmp_path):
    (tmp_path / "one").mkdir()
    with Pulse(tmp_path / "one", "launch", 0, 2, 600.0) as pulse:
        pulse.first("prepare", lambda: (tmp_path / "done").touch())
        assert (tmp_path / "done").exists()
        with Pulse(tmp_path / "one", "launch", 1, 2, 600.0) as second:
            second.first("prepare", lambda: pytest.fail("twice"))
    first, second = (Pulse(tmp_path / "two", "launch", rank, 2, 600.0) for rank in (0, 1))
    with pytest.raises(UserError), first:
        first.first("prepare", lambda: fail(UserError("no such text")))
    with pytest.raises(RunError, match=rf"prepare: rank 0 on {HOST} .* ended: no such text$"), second:
        second.first("prepare", lambda: pytest.fail("twice"))


def fail(error):
    raise error


@pytest.mark.parametrize("end", [None, Preempted("SIGTERM")])
def test_who_ends_in_order_leaves_nothing_and_is_missed_by_nobody(tmp_path, end):
    with Pulse(tmp_path / FOLDER, "launch", 0, 2, 0.5):
        try:
            with Pulse(tmp_path / FOLDER, "launch", 1, 2, 600.0):
                time.sleep(0.3)  # it has been seen
                if end:
                    raise end
        except Preempted:
            pass
        time.sleep(1.5)
    assert not (tmp_path / FOLDER).exists()


def test_a_full_disk_is_no_silence(tmp_path, monkeypatch):
    writer = other(tmp_path)
    stamp, _ = read(tmp_path, 1, "launch")
    monkeypatch.setattr(writer, "_write", lambda _: fail(OSError(28, "No space left on device")))
    writer.now = writer.now.__class__(**{**vars(writer.now), "marks": ("prepare",)})
    time.sleep(0.02)
    assert writer.beat()
    assert read(tmp_path, 1, "launch")[0] > stamp


@pytest.mark.parametrize("changes", [{"space": "another container"}, {"space": ""}, {"started": 0}], ids=str)
def test_a_number_that_means_nothing_here_is_no_death(tmp_path, changes):
    gone = replace(other(tmp_path).now, process=2**30)
    assert gone.is_gone
    assert not replace(gone, **changes).is_gone


def awaited(pulse, what):
    """What comes of waiting for rank 0; fails where that has no end."""
    found = []

    def wait():
        try:
            found.append(pulse.first(what, lambda: pytest.fail("twice")))
        except RunError as error:
            found.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(30)
    assert found, "it waits for ever"
    return found[0]


def pair(folder, patience):
    """Rank 0, played by this process, and rank 1, which sees it."""
    first, second = Writer(folder, "launch", 0), Pulse(folder, "launch", 1, 2, patience)
    first.beat()
    return first, second


@pytest.mark.parametrize("early", [True, False])
def test_nobody_waits_for_a_first_that_has_left(tmp_path, early):
    """Whether it left before the others began to wait, or while they did."""
    first, second = pair(tmp_path / FOLDER, PATIENCE)
    if early:
        second._lost(0.0)
    leaves = threading.Timer(0.0 if early else 0.5, first.remove)
    leaves.start()
    error = awaited(second, "prepare")
    leaves.join()
    gone = f"rank 0 on {HOST} (process {os.getpid()}) left, and this process did not see it done"
    assert str(error) == f"prepare: {gone}"


def test_a_first_that_has_left_after_its_mark_was_seen_is_not_missed(tmp_path):
    first, second = pair(tmp_path / FOLDER, PATIENCE)
    first.mark("prepare")
    second._lost(0.0)
    first.remove()
    assert awaited(second, "prepare") is None


def test_a_file_that_others_took_away_comes_back(tmp_path):
    first, second = pair(tmp_path / FOLDER, 30.0)
    second._lost(0.0)
    path_of(tmp_path / FOLDER, 0).unlink()
    returns = threading.Timer(0.4, first.mark, ["prepare"])
    returns.start()
    assert awaited(second, "prepare") is None
    returns.join()


def test_one_process_leaves_nothing(tmp_path):
    with Pulse(tmp_path / FOLDER, "launch", 0, 1, PATIENCE) as pulse:
        pulse.first("prepare", (tmp_path / "done").touch)
    assert [path.name for path in tmp_path.iterdir()] == ["done"]


def test_a_file_that_two_threads_write_is_always_whole(tmp_path):
    """Long and short contents in turn: what one leaves of the other's would be of no sense."""
    writer = other(tmp_path)
    done = threading.Event()

    def write(name, values):
        for value in values:
            writer.change(**{name: value})
            assert getattr(writer.now, name) == value

    def look():
        while not done.is_set():
            _, beat = read(tmp_path, 1, "launch")
            parts.append(beat is None)

    parts = []
    reader = threading.Thread(target=look)
    reader.start()
    with ThreadPoolExecutor(2) as pool:
        marks = pool.submit(write, "marks", [("x" * (999 * (i % 2)),) for i in range(100)])
        ended = pool.submit(write, "ended", ["y" * (999 * (i % 2)) for i in range(100)])
        marks.result()
        ended.result()
    done.set()
    reader.join()
    assert parts
    assert not any(parts)
    assert read(tmp_path, 1, "launch")[1] == writer.now
    assert [path.name for path in tmp_path.iterdir()] == ["rank1.json"]


def test_what_found_no_room_is_written_when_there_is(tmp_path, monkeypatch):
    writer = other(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(writer, "_write", lambda _: fail(OSError(28, "No space left on device")))
        writer.mark("prepare")
        assert read(tmp_path, 1, "launch")[1].marks == ()  # what it said before is left
        path_of(tmp_path, 1).unlink()
        assert writer.beat()  # a sign of life without words
        assert read(tmp_path, 1, "launch")[0] is not None
    assert writer.beat()
    assert read(tmp_path, 1, "launch")[1] == writer.now
