"""One process at a time in a run folder; what a dead one left is taken over."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from llmnas.distributed import lock
from llmnas.distributed.lock import FILE, Holder, locked
from llmnas.errors import UserError

HOLD = (
    "import sys, time; from pathlib import Path; from llmnas.distributed.lock import locked\n"
    "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)"
)


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_is_told_who_holds_it(holder, tmp_path):
    with pytest.raises(UserError) as error, locked(tmp_path / "run"):
        pytest.fail("two at once")
    since = json.loads((tmp_path / "run" / FILE).read_text())["since"]
    assert str(error.value).startswith(
        f"{tmp_path / 'run'}: process {holder.pid} on {socket.gethostname()} since {since} works in this run folder"
    )


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_what_a_dead_process_left_is_taken_over(holder, tmp_path, stop):
    holder.send_signal(stop)
    holder.wait()
    assert (tmp_path / "run" / FILE).exists() == (stop == signal.SIGKILL)
    with locked(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / FILE).read_text())["process"] == os.getpid()


def test_nothing_is_left_behind(tmp_path):
    with locked(tmp_path / "runs" / "a"):
        assert [path.name for path in (tmp_path / "runs" / "a").iterdir()] == [FILE]
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "runs" / "a"):
        (tmp_path / "runs" / "a" / "result").touch()
    assert [path.name for path in (tmp_path / "runs" / "a").iterdir()] == ["result"]


def left_by_another_host(folder):
    folder.mkdir()
    file = folder / FILE
    file.write_text(json.dumps({"host": "elsewhere", "process": 1, "started": 5, "since": "2026-01-01 00:00:00"}))
    return file


def test_a_silent_holder_on_another_host_is_taken_over(tmp_path, capfd):
    left_by_another_host(tmp_path / "run")
    with locked(tmp_path / "run", patience=0.3):
        assert json.loads((tmp_path / "run" / FILE).read_text())["host"] == socket.gethostname()
    assert "held by process 1 on elsewhere since 2026-01-01 00:00:00; watching" in capfd.readouterr().err


def test_a_holder_on_another_host_that_touches_the_file_keeps_it(tmp_path):
    file = left_by_another_host(tmp_path / "run")
    done = threading.Event()

    def touch():
        while not done.wait(0.05):
            os.utime(file)

    toucher = threading.Thread(target=touch)
    toucher.start()
    try:
        with pytest.raises(UserError, match="process 1 on elsewhere since 2026"), locked(tmp_path / "run", patience=60):
            pytest.fail("two at once")
    finally:
        done.set()
        toucher.join()
    assert json.loads(file.read_text())["host"] == "elsewhere"


def test_the_holder_touches_the_file(tmp_path):
    with locked(tmp_path / "run", refresh=0.02):
        before = (tmp_path / "run" / FILE).stat().st_mtime_ns
        deadline = time.monotonic() + 60
        while (tmp_path / "run" / FILE).stat().st_mtime_ns == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_without_advisory_locks_a_process_counts_by_number_and_start(holder, tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    with pytest.raises(UserError, match=f"process {holder.pid} on "), locked(tmp_path / "run"):
        pytest.fail("two at once")
    holder.kill()
    holder.wait()
    with locked(tmp_path / "run"):
        pass


def test_a_number_that_another_process_has_got_since_is_not_the_holder():
    own = Holder.of_this_process()
    assert own.lives() is True
    assert replace(own, started=own.started + 1).lives() is False


ELSEWHERE = [{"space": "another"}, {"space": ""}, {"host": "another"}, {"started": 0}]


@pytest.mark.parametrize("changes", ELSEWHERE, ids=str)
def test_a_number_says_nothing_of_another_container_or_without_proc(changes):
    assert replace(Holder.of_this_process(), **{"process": 2**30, **changes}).lives() is None


@pytest.mark.parametrize(
    ("flock", "changes"),
    [
        (False, {"space": "another"}),
        (False, {"started": 0}),
        (False, {"space": ""}),
        (True, {"boot": "another", "space": "another"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("touches", [False, True])
def test_a_holder_on_a_host_of_the_same_name_is_watched(tmp_path, monkeypatch, flock, changes, touches):
    """In another container, or under another kernel, whose locks do not come here: its number is nobody's here."""

    def unsupported(*_):
        raise OSError(lock.errno.ENOLCK, "No locks available")

    if not flock:
        monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    left = replace(Holder.of_this_process(), process=2**30, **changes)
    (tmp_path / FILE).write_text(json.dumps(asdict(left)))
    times = iter(range(10**6))
    monkeypatch.setattr(lock, "_touched", lambda _: next(times) if touches else 0)
    if touches:
        with pytest.raises(UserError, match=f"process {2**30} on "), locked(tmp_path, patience=0.3):
            pytest.fail("two at once")
    else:
        with locked(tmp_path, patience=0.3):
            assert json.loads((tmp_path / FILE).read_text())["process"] == os.getpid()


def test_a_holder_in_another_container_on_this_kernel_is_known_by_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_silent", lambda *_: pytest.fail("watched"))
    left = replace(Holder.of_this_process(), process=2**30, space="another")
    (tmp_path / FILE).write_text(json.dumps(asdict(left)))
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 1}', "\x00"])
def test_a_damaged_lock_that_nobody_holds_hinders_nobody(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "run"
    with pytest.raises(UserError, match=rf"{folder}: cannot write there \(Not a directory\)"), locked(folder):
        pass
