"""OpenMP is told to sleep where it waits, before torch is loaded, and the user has the last word."""

import os
import subprocess
import sys

import pytest

from llmnas.waiting import PASSIVE

CODE = f"import llmnas, os, sys; print('torch' in sys.modules, *(os.environ[name] for name in {list(PASSIVE)}))"


@pytest.mark.parametrize(("own", "expected"), [({}, "PASSIVE 0"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE 0")])
def test_the_policy_is_there_before_torch_is(own, expected):
    clean = {name: value for name, value in os.environ.items() if name not in PASSIVE}
    done = subprocess.run([sys.executable, "-c", CODE], env=clean | own, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"False {expected}"
