"""Runs the kernels in Triton's interpreter, in a process of its own: the flag must precede the import of triton."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"


def run(mark):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", mark, "."]
    # in another folder `python -m` would not find the checkout that is being tested
    paths = [str(FOLDER.parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("mark", ["not full", pytest.param("full", marks=pytest.mark.full)])
def test_kernels_in_the_interpreter(mark):
    done = run(mark)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "[100%]" in done.stdout
