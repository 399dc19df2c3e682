"""Metrics on disk, progress on a terminal and in a pipe."""

import json
import os
import pty
import re
import socket
import subprocess
import sys

import pytest
import tiny
import wandb

from llmnas.tracking import Tracker, code_version, read_metrics


def tracker(folder):
    return Tracker(folder, "off", "", {})


def test_records_are_on_disk_at_once(tmp_path):
    with tracker(tmp_path) as log:
        log.log("supernet", 1, {"train_loss": 2.5})
        (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert json.loads(line).items() >= {"stage": "supernet", "step": 1, "train_loss": 2.5}.items()


def test_nothing_is_written_before_the_first_record(tmp_path):
    with tracker(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()


def test_a_line_that_a_kill_cut_off_costs_no_other(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with tracker(tmp_path) as log:
        log.log("supernet", 1, {"train_loss": 2.5})
        log.log("supernet", 2, {"train_loss": 2.4})
    whole = path.read_bytes()
    for cut in range(len(whole.splitlines(keepends=True)[0]) + 1, len(whole)):
        path.write_bytes(whole[:cut])
        with tracker(tmp_path) as log:
            log.log("supernet", 2, {"train_loss": 9.0})
            log.log("supernet", 3, {"train_loss": 2.3})
        assert [(r["step"], r["train_loss"]) for r in read_metrics(path)] == [(1, 2.5), (2, 9.0), (3, 2.3)]


@pytest.mark.parametrize("damage", [b"\xff\x00", b"{}", b"[1]", b"3"])
def test_a_damaged_line_costs_no_other(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    with tracker(tmp_path) as log:
        for step in (1, 2, 3):
            log.log("supernet", step, {"train_loss": 2.5})
    lines = path.read_bytes().splitlines()
    lines[1] = damage
    path.write_bytes(b"\n".join(lines) + b"\n")
    assert [r["step"] for r in read_metrics(path)] == [1, 3]


def test_of_a_step_done_twice_the_last_counts_and_the_order_is_that_of_steps(tmp_path):
    with tracker(tmp_path) as log:
        for step, loss in ((2, 1.0), (3, 1.0), (2, 0.5)):
            log.log("supernet", step, {"train_loss": loss})
        log.log("supernet", 2, {"val_loss_random": 7.0})
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [(r["step"], r.get("train_loss"), r.get("val_loss_random")) for r in records] == [
        (2, None, 7.0), (2, 0.5, None), (3, 1.0, None),
    ]  # fmt: skip


def test_no_file_no_records(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


SCRIPT = """
import sys, time
from pathlib import Path
from llmnas.tracking import Tracker
with Tracker(Path(sys.argv[1]), "off", "", {}) as tracker:
    for step in range(1, 41):
        tracker.progress("supernet", step, 40, f"loss {6 - step / 40:.3f}")
        time.sleep(0.02)
    tracker.progress("search", 1, 100, "nsga2")
    tracker.progress("supernet", 2, 2)
"""


def test_a_pipe_gets_plain_lines(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=True,
        env=tiny.environment(),
    )  # fmt: skip
    assert done.stdout == ""
    first, last, search, anew = done.stderr.splitlines()
    assert first == "supernet: 1/40, loss 5.975"
    assert re.fullmatch(r"supernet: 40/40, loss 5.000, \d+\.\d a second", last)
    assert search == "search: 1/100, nsga2"
    assert anew == "supernet: 2/2"  # counted from the beginning again: no rate yet, and none below zero


def test_a_terminal_gets_a_bar_with_rate_and_time_left_and_keeps_the_last_line(tmp_path):
    shown = on_terminal([sys.executable, "-c", SCRIPT, str(tmp_path)])
    assert "━" in shown
    assert re.search(r"\d+\.\d a second", shown)
    assert re.search(r"\d:\d\d:\d\d", shown)
    assert re.search(r"supernet: 40/40, loss 5.000, \d+\.\d a second\s", shown)


def on_terminal(arguments):
    """Everything that a process writes to a terminal of 120 columns."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        arguments, stdin=slave, stdout=slave, stderr=slave, env=tiny.environment(TERM="xterm-256color", COLUMNS="120")
    )
    os.close(slave)
    parts = []
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:  # the last process that had the terminal has ended
            break
        if not part:
            break
        parts.append(part)
    os.close(master)
    assert process.wait() == 0
    return b"".join(parts).decode(errors="replace")


WANDB = """
import sys
from pathlib import Path
from llmnas.tracking import Tracker
with Tracker(Path(sys.argv[1]), "offline", "p", {"seed": 0}) as tracker:
    tracker.log("supernet", 1, {"train_loss": 1.0})
"""


@pytest.mark.full
def test_wandb_offline_leaves_a_run_beside_the_metrics_and_calls_nobody(tmp_path):
    """Real W&B: a second start goes on with the same run; whatever would go out, would go to the proxy."""
    with socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        proxy.listen()
        proxy.setblocking(False)
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        network = {
            name: address for scheme in ("http", "https") for name in (f"{scheme}_proxy", f"{scheme}_PROXY".upper())
        }
        for _ in range(2):
            subprocess.run(
                [sys.executable, "-c", WANDB, str(tmp_path)], check=True, env=tiny.environment(**network, NO_PROXY="")
            )
        with pytest.raises(BlockingIOError):
            proxy.accept()
    run_id = (tmp_path / "wandb.id").read_text()
    (run, *_) = [path for path in (tmp_path / "wandb").glob("offline-run-*") if path.name.endswith(run_id)]
    stored = (run / f"run-{run_id}.wandb").read_bytes()
    for written in (b"seed", b"llmnas_version", b"code_version", code_version().encode(), b"supernet/train_loss"):
        assert written in stored


@pytest.mark.full
@pytest.mark.parametrize("obstacle", ["a file", "a link to nowhere"])
def test_a_folder_that_wandb_cannot_write_costs_no_number(tmp_path, caplog, obstacle):
    if obstacle == "a file":
        (tmp_path / "wandb").write_text("")
    else:
        (tmp_path / "wandb").symlink_to("/proc/1/nowhere")
    with Tracker(tmp_path, "offline", "llmnas", {}) as log:
        log.log("supernet", 1, {"train_loss": 2.5})
        log.log("supernet", 2, {"train_loss": 2.4})
        log.table("search", "front", ["id"], [["a"]])
    assert [record["train_loss"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [2.5, 2.4]
    (said,) = [record.getMessage() for record in caplog.records if record.name == "llmnas.tracking"]
    assert said.startswith(f"W&B: {tmp_path / 'wandb'}")
    assert said.endswith("going on without it, metrics.jsonl has every number")


def test_wandb_that_fails_in_the_middle_costs_no_number(tmp_path, caplog):
    with Tracker(tmp_path, "offline", "llmnas", {}) as log:
        log.log("supernet", 1, {"train_loss": 2.5})
        wandb.teardown()  # ends its service, as a kill would
        for step in (2, 3):
            log.log("supernet", step, {"train_loss": 2.5})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3


def test_wandb_mode_disabled_is_heeded(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with Tracker(tmp_path, "online", "llmnas", {}) as log:
        log.log("supernet", 1, {"train_loss": 2.5})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_the_front_of_a_search_is_a_table_in_wandb(copied, llmnas):
    for name in ("evaluations.sqlite", "pareto.json"):
        (copied.folder / name).unlink()
    options = ("--resume", "--set", "tracking.wandb=offline")
    assert llmnas("search", copied.config, "--run-dir", copied.folder, *options).code == 0
    (table,) = copied.folder.glob("wandb/offline-run-*/files/media/table/search/front_*.table.json")
    found = json.loads(table.read_text())
    front = json.loads((copied.folder / "pareto.json").read_text())
    assert [dict(zip(found["columns"], row, strict=True)) for row in found["data"]] == [
        {"id": network["id"], **network["metrics"]} for network in front
    ]
