"""What a command owes the process that started it: exit codes, one line for every failure, signals, sweep arguments."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from typer.exceptions import TyperException

from llmnas.errors import Preempted, RunError, UserError
from llmnas.extras import missing
from llmnas.files import one_line
from llmnas.memory import asked_for

_IDLE_TALK = ("torchao", "torch.utils._pytree")
"""Loggers that warn of GPU files of theirs and of each other whenever transformers is imported: no news to a user."""


def run_process(command: Callable[[list[str]], Any]) -> int:
    """Run a command on the process's arguments and return its exit code.

    0 done, 1 a failed run, 2 bad input, 75 preempted (put it back into the queue), 130 interrupted, 143
    terminated; all but 0 say why in one line.
    """
    signal.signal(signal.SIGTERM, _terminated)
    for name in _IDLE_TALK:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        code = int(command(sweep_arguments(sys.argv[1:])) or 0)
    except UserError as error:
        complain(error)
        return 2
    except ModuleNotFoundError as error:
        if (advice := missing(error)) is None:
            raise
        complain(advice)
        return 2
    except TyperException as error:  # no such verb or option, a value of the wrong type
        if message := " ".join(error.format_message().split()):  # no arguments at all: help has been shown
            complain(f"{message.removesuffix('.')}; see llmnas --help")
        return error.exit_code
    except RunError as error:
        complain(error)
        return 1
    except (MemoryError, RuntimeError) as error:
        if (amount := asked_for(error)) is None:
            raise
        complain(f"{' '.join(sys.argv[1:2])}: out of memory, {amount} could not be had")
        return 1
    except Preempted as error:
        complain(error)
        return 75  # EX_TEMPFAIL: what launch/slurm.sh puts back into the queue
    except OSError as error:
        complain(f"{error.filename or 'file'}: {error.strerror or error}")
        return 1
    if code == 130:
        complain("interrupted; what is stored is kept, --resume goes on from there")
    return code


def complain(message: object) -> None:
    """One line on stderr; under a launcher it says which rank speaks."""
    alone = os.environ.get("WORLD_SIZE", "") in {"", "1"} or "RANK" not in os.environ
    rank = "" if alone else f"rank {os.environ['RANK']}: "
    print(f"llmnas: {rank}{one_line(message)}", file=sys.stderr, flush=True)


def sweep_arguments(arguments: list[str]) -> list[str]:
    """A W&B agent's `--train.lr=0.001` as `--set train.lr=0.001`; everything else as it is."""
    found: list[str] = []
    for argument in arguments:
        swept = re.fullmatch(r"--(seed|\w+(?:\.\w+)+)=(.*)", argument, re.DOTALL)
        found += ["--set", f"{swept[1]}={swept[2]}"] if swept else [argument]
    return found


def _terminated(number: int, frame: FrameType | None) -> None:
    if _in_finalizer(frame):  # Python prints and forgets what is raised there: come back in a moment
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        return
    complain("terminated; what is stored is kept, --resume goes on from there")
    raise SystemExit(143)


def _in_finalizer(frame: FrameType | None) -> bool:
    """Whether an object is being finalised at the moment."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
