"""A training that has too little memory says what asked for it, and which keys to lower."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import tiny
from train_script import run

from llmnas.process import run_process
from llmnas.train.settings import TrainSettings


def test_a_step_that_asks_for_too_much_says_what_to_lower(tmp_path):
    """A real allocator that is refused more than 400 MB, in a process of its own: in a fork of one that has trained
    before, the backward pass waits for threads that are not there."""
    ended = subprocess.run(
        [sys.executable, __file__], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=tiny.environment(PYTHONPATH=os.pathsep.join(sys.path)),
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    assert re.fullmatch(
        r"llmnas: step 0: 40000 sequences at once through networks of up to [\d,]+ parameters: out of memory, "
        r"[\d,]+ bytes could not be had; lower train.micro_batch or train.seq_len, or set train.checkpoint_blocks: "
        r"true",
        next(line for line in ended.stderr.splitlines() if line.startswith("llmnas: ")),
    )


def starve():
    sys.argv = ["llmnas", "train"]
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (400 << 20), size + (400 << 20)))
    settings = TrainSettings(steps=2, batch_size=40000, seq_len=16, threads=1)
    raise SystemExit(run_process(lambda _: run(None, settings)))


if __name__ == "__main__":
    starve()
