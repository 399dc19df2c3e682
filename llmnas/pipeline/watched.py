"""The processes of a launch, each with a watch over the others."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator

from llmnas.distributed.pulse import FOLDER, Pulse
from llmnas.pipeline.context import Context
from llmnas.train.agreement import all_of
from llmnas.train.checkpoint import newest
from llmnas.train.engine import start_processes
from llmnas.train.processes import Processes


@contextlib.contextmanager
def watched(context: Context, advice: Callable[[], str]) -> Iterator[tuple[Processes, Pulse]]:
    """Join the processes of the launch, and watch over them while entered. Collective.

    Args:
        context: of the run; `train.patience_minutes` says how long a process may be silent.
        advice: what is left to go on from, in words.

    Raises:
        RunError: another process is gone; says which, its host and how far this one was.
    """
    processes = start_processes()
    launch = all_of(secrets.token_hex(8), processes.size)[0]
    patience = 60 * context.config.train.patience_minutes
    folder = context.run.path / FOLDER
    with Pulse(folder, launch, processes.rank, processes.size, patience, advice) as pulse:
        yield processes, pulse


def checkpoint_left(context: Context) -> str:
    """What a training that breaks off leaves."""
    return f"{newest(context.run.checkpoints)}; start again with --resume"


def evaluations_left() -> str:
    """What a search that breaks off leaves."""
    return "all finished evaluations are stored; start again with --resume"
