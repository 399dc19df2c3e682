"""Threads that wait for work sleep: they spin by default, and then two busy neighbours make a step 50 times slower."""

from __future__ import annotations

import os

PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""Read by GNU's OpenMP (torch's own, and MKL's in it), and by Intel's and LLVM's, when they are loaded: with torch."""


def wait_passively() -> None:
    """Say so to every OpenMP that is loaded later, here and in child processes; what the user set stays."""
    for name, value in PASSIVE.items():
        os.environ.setdefault(name, value)
