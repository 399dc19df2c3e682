"""Worker processes: every job once, faults in one line, none that outlives its parent."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmnas.distributed.workers import run_jobs
from llmnas.errors import RunError


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_done_once(workers):
    found = list(run_jobs(math.factorial, range(7), workers))
    assert sorted(found) == [(n, math.factorial(n)) for n in range(7)]


def test_a_job_that_fails_is_one_line_and_ends_the_others():
    with pytest.raises(RunError, match=r"a worker process failed: ValueError: .* \(.*workers\.py:\d+\)") as error:
        list(run_jobs(math.sqrt, [-1.0, 4.0], 2))
    assert "\n" not in str(error.value)


PARENT = """
import multiprocessing, threading, time
from llmnas.distributed.workers import run_jobs

def tell():
    while len(multiprocessing.active_children()) < 2:
        time.sleep(0.1)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)

if __name__ == "__main__":
    threading.Thread(target=tell).start()
    list(run_jobs(time.sleep, [600, 600], 2))
"""


@pytest.mark.timeout(180)
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    children = [int(word) for word in parent.stdout.readline().split()]
    assert len(children) == 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    while any(_runs(child) for child in children):  # the mark above says for how long at most
        time.sleep(0.1)


def _runs(process):
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] not in "ZX"
