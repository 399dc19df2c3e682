"""Runs the kernels in Triton's interpreter, in a process of its own: the flag must precede the import of triton."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"
FILES = sorted(path.name for path in FOLDER.glob("test_*.py"))


def run(name, *options):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *options, name]
    # in another folder `python -m` would not find the checkout that is being tested
    paths = [str(FOLDER.parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("name", FILES)
def test_kernels_in_the_interpreter(name):
    done = run(name, "-m", "not full")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.full
@pytest.mark.parametrize("name", FILES)
def test_kernels_in_the_interpreter_on_large_shapes(name):
    done = run(name, "-m", "full")
    assert done.returncode in {0, 5}, done.stdout[-4000:] + done.stderr[-2000:]  # 5: the file has no long tests
