"""A search whose candidates are measured by two real processes: the same result, nothing lost when one dies."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
import tiny

from llmnas import cli
from llmnas.archive import read_archive
from llmnas.config import load_config
from llmnas.cost import count_params
from llmnas.errors import UserError
from llmnas.evaluate.evaluator import Evaluator, Part
from llmnas.pipeline.context import Context
from llmnas.pipeline.search import search_supernet
from llmnas.pipeline.tables import speed
from llmnas.pipeline.team import Journal, deal
from llmnas.rng import generator
from llmnas.runs import RunFolder
from llmnas.space import SearchSpace
from llmnas.tracking import Tracker

SPACE = SearchSpace.from_dict(tiny.CONFIG["space"])
SETS = ["search.strategy=evolution", "search.windows=40", "search.sample=40"]
VERBS = [info.name or info.callback.__name__ for info in cli.app.registered_commands]


def test_every_part_is_dealt_once_and_the_work_is_even():
    rng = generator(0, "deal")
    parts = [Part(SPACE.sample(rng), 0, 8) for _ in range(13)]
    work = [8 * count_params(part.arch, SPACE.base).active for part in parts]
    for ranks in (1, 2, 5):
        hands = deal(parts, SPACE.base, ranks)
        assert sorted(i for hand in hands for i in hand) == list(range(13))
        loads = [sum(work[i] for i in hand) for hand in hands]
        assert max(loads) - min(loads) <= max(work)
    assert sorted(map(len, deal(parts[:2], SPACE.base, 4))) == [0, 0, 1, 1]


def test_a_journal_keeps_what_was_finished_and_refuses_other_windows(tmp_path):
    parts = [Part(SPACE.sample(generator(0, "journal", i)), 0, 3) for i in range(3)]
    losses = [np.array([0.1 + 0.2, 1 / 3, np.nan]), np.array([np.inf, 1.0, 2.0]), np.array([3.0, 4.0, 5.0])]
    path = tmp_path / "new" / "rank0.jsonl"
    journal = Journal(path, {"windows": 4})
    for i in (0, 1):
        journal.add(parts[i], losses[i])
    with path.open("a") as stream:
        stream.write('{"architecture": {"hid')  # killed while writing
    found = Journal(path, {"windows": 4}).read()
    assert list(found) == parts[:2]
    assert all(np.array_equal(found[parts[i]], losses[i], equal_nan=True) for i in (0, 1))  # to the last bit
    Journal(path, {"windows": 4}).add(parts[2], losses[2])
    assert list(Journal(path, {"windows": 4}).read()) == parts
    with pytest.raises(UserError, match="other windows"):
        Journal(path, {"windows": 8}).read()
    path.write_text(path.read_text().replace("architecture", "arch"))
    with pytest.raises(UserError, match=r"rank0.jsonl: line 2: damaged"):
        Journal(path, {"windows": 4}).read()


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in {"train", "search"}])
def test_a_verb_of_one_process_is_refused_under_a_launcher(llmnas, monkeypatch, verb):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    done = llmnas(verb, "config.yaml")
    assert done.code == 2
    assert done.complaint.startswith(f"llmnas: rank 1: {verb}: runs in one process, and a launcher started 2")
    assert "train, search" in done.complaint


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "0"}, "RANK=0 is set and WORLD_SIZE, MASTER_ADDR, MASTER_PORT not"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "29500"}, "RANK=1 is set and MASTER_ADDR not"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: must be a whole number"),
        ({"RANK": "-1"}, "RANK=-1: must be a whole number"),
    ],
)
@pytest.mark.parametrize("verb", ["prepare", "train", "search"])
def test_half_a_launcher_is_one_line(llmnas, monkeypatch, verb, variables, said):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = llmnas(verb, "config.yaml")
    assert done.code == 2
    assert said in done.complaint


def launched(run, folder, *sets, resume=False):
    """`llmnas search` by two processes under DeepSpeed's launcher, started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [word for text in (*SETS, *sets) for word in ("--set", text)] + ["--resume"] * resume
    return subprocess.Popen(
        [sys.executable, "-m", "deepspeed.launcher.runner", "--no_local_rank", "--num_gpus", "2", "--master_port",
         str(port), "--module", "llmnas.cli", "search", str(run.config), "--run-dir", str(folder), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=tiny.environment(), cwd=folder.parent,
    )  # fmt: skip


def trained(run, folder):
    """The tiny run, prepared and trained."""
    folder.mkdir()
    for name in ("data", "supernet"):
        shutil.copytree(run.folder / name, folder / name)
    return folder


def searched(run, folder, evaluations, *sets):
    """The same search in this process."""
    config = load_config(Path(run.config), [*SETS, f"search.evaluations={evaluations}", *sets])
    with Tracker(folder, "off", "", {}) as tracker:
        search_supernet(Context(config, RunFolder(folder), tracker)).close()
    return stored(folder)


def stored(folder):
    _, _, found = read_archive(folder / "evaluations.sqlite")
    return [(e.arch, e.metrics, e.failure) for e in found]


def finished(folder):
    """What is in the journals, whatever their identity: the architecture of every finished part."""
    files = sorted((folder / "search").glob("rank*.jsonl"))
    return [json.dumps(json.loads(line)["architecture"]) for f in files for line in f.read_text().split("\n")[1:-1]]


def archived(evaluations):
    """The architectures of `stored`, as `finished` writes them."""
    return {json.dumps(arch.to_dict()) for arch, _, _ in evaluations}


def rank_process(launcher, rank):
    """The process of this rank below the launcher."""
    for process in psutil.Process(launcher).children(recursive=True):
        if "llmnas.cli" in process.cmdline() and process.environ().get("RANK") == str(rank):
            return process
    pytest.fail(f"no process with rank {rank}")


def wait_until(reached, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, process.stdout.read()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_killed_rank_loses_no_finished_evaluation_and_none_is_repeated(tiny_run, tmp_path, monkeypatch):
    """Two processes, of which one is frozen, then killed, so that the other has finished its share of a batch that
    cannot reach the archive; one process goes on, and ends as one that was alone from the beginning."""
    folder = trained(tiny_run, tmp_path / "both")
    process = launched(tiny_run, folder, "search.evaluations=2000000")
    wait_until(lambda: (folder / "evaluations.sqlite").exists() and len(finished(folder)) > 8, process)
    victim = rank_process(process.pid, 1)

    def frozen_within_a_batch():
        victim.send_signal(signal.SIGSTOP)
        time.sleep(1)
        seen = -1
        while seen != (seen := len(finished(folder))):  # until rank 0 waits for the other
            time.sleep(1)
        if set(finished(folder)) > archived(stored(folder)):
            return True
        victim.send_signal(signal.SIGCONT)  # it was about to be sent a batch, and rank 0 cannot send it
        return False

    wait_until(frozen_within_a_batch, process)
    before = stored(folder)
    victim.kill()
    out, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "Traceback" not in out, out[-3000:]
    assert (
        f"llmnas: rank 0: search: rank 1 on {socket.gethostname()} (process {victim.pid}) is gone; all finished" in out
    )
    journalled = finished(folder)
    assert max(Counter(journalled).values()) == 1
    assert set(journalled) > archived(before)  # something was finished beyond the archive

    run = []
    part = Evaluator.part

    def counted(self, asked):
        run.append(json.dumps(asked.arch.to_dict()))
        return part(self, asked)

    monkeypatch.setattr(Evaluator, "part", counted)
    count = len(before) + 8
    resumed = searched(tiny_run, folder, count)
    assert resumed[: len(before)] == before
    assert not set(run) & set(journalled)
    assert len(run) == len(set(run))
    assert len(run) + len(journalled) >= count
    assert not (folder / "search").exists()  # the archive has everything
    alone = searched(tiny_run, trained(tiny_run, tmp_path / "alone"), count)
    assert resumed == alone  # every number, of two processes and of one


@pytest.mark.parametrize("moment", [6, 12], ids=["within a batch", "in the race"])
def test_sigterm_ends_a_search_with_75_and_the_next_start_ends_as_if_nothing_was(
    tiny_run, tmp_path, llmnas, monkeypatch, moment
):
    folder = trained(tiny_run, tmp_path / "stopped")
    searched(tiny_run, folder, 4)  # with a decision, which must not outlive what is found later
    decided = (folder / "decision.json").read_text()
    run = []
    part = Evaluator.part

    def counted(self, asked):
        run.append(asked.arch)
        if len(run) == moment - 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return part(self, asked)

    monkeypatch.setattr(Evaluator, "part", counted)
    sets = [word for text in (*SETS, "search.evaluations=12") for word in ("--set", text)]
    command = ["search", tiny_run.config, "--run-dir", folder, "--resume", *sets]
    done = llmnas(*command)
    assert done.code == 75  # what launch/slurm.sh puts back into the queue
    assert "SIGTERM: all finished evaluations are stored; start again with --resume" in done.complaint
    assert len(run) == moment - 4
    assert (folder / "decision.json").read_text() == decided
    assert llmnas(*command).code == 0
    assert len(run) == len(set(run)) == 8  # none is repeated
    alone = trained(tiny_run, tmp_path / "alone")
    assert stored(folder) == searched(tiny_run, alone, 12)
    assert (folder / "decision.json").read_text() == (alone / "decision.json").read_text() != decided


def test_a_search_that_halves_says_what_it_dropped(tiny_run, tmp_path):
    folder = trained(tiny_run, tmp_path / "halved")
    found = searched(tiny_run, folder, 16, "search.halving={first: 10}", "search.batch=8")
    assert [sum(word in str(why) for _, _, why in found) for word in ("after 10 windows", "after 20 windows")] == [8, 4]
    facts = json.loads((folder / "manifest.json").read_text())["stages"]["search"]
    assert facts["dropped"] == 12
    assert facts["windows_share"] == (8 * 10 + 4 * 10 + 2 * 20) / (8 * 40)
    assert " Successive halving dropped 12: 50% of all windows were run." in speed(facts)
    front = json.loads((folder / "pareto.json").read_text())
    full = {arch.id for arch, _, why in found if why is None}
    assert len(full) == 4
    assert {row["id"] for row in front} <= full


@pytest.mark.full
def test_two_processes_find_what_one_finds_with_one_voice(tiny_run, tmp_path):
    folder = trained(tiny_run, tmp_path / "both")
    for evaluations, resume in ((10, False), (22, True)):
        process = launched(tiny_run, folder, f"search.evaluations={evaluations}", resume=resume)
        out, _ = process.communicate(timeout=400)
        assert process.returncode == 0, out[-3000:]
        assert out.count("Pareto front") == 1
        assert "on 2 process(es)" in " ".join(out.split())
    assert stored(folder) == searched(tiny_run, trained(tiny_run, tmp_path / "alone"), 22)
    facts = json.loads((folder / "manifest.json").read_text())["stages"]["search"]
    assert facts["candidates_per_hour"] > 0
    assert 0 < facts["strategy_share"] < 1
    assert os.path.exists(folder / "decision.json")
    process = launched(tiny_run, folder, "search.evaluations=22")  # finished, and not asked to resume
    out, _ = process.communicate(timeout=400)
    assert process.returncode != 0
    assert "exists already" in out
