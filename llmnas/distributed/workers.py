"""Jobs done by worker processes of this machine: none is waited for that is gone, and none outlives its parent."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import parent_process
from typing import Any, TypeVar

from llmnas.errors import RunError, UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_jobs(function: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[tuple[Job, Result]]:
    """`function` of every job, each pair as soon as it is there; with one worker in this process.

    Args:
        function: of a module's top level, as are the jobs' types: both travel to other processes.
        jobs: handed out one at a time, in their order.
        workers: processes.

    Raises:
        UserError: as a job raised it; jobs that are not finished are ended.
        RunError: a worker was killed, or a job failed in another way.
    """
    if workers <= 1:
        yield from ((job, function(job)) for job in jobs)
        return
    with contextlib.ExitStack() as stack:
        yield from _Team(function, workers, stack).run(jobs)


class _Team:
    """Worker processes, each with a pipe to this one; ended when the stack closes."""

    def __init__(self, function: Callable[[Any], Any], workers: int, stack: contextlib.ExitStack) -> None:
        self._function, self._workers, self._stack = function, workers, stack
        self._busy: dict[Connection, tuple[Any, Any]] = {}  # pipe -> its process and job

    def run(self, jobs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Start as many processes as there are jobs for, hand out the rest as they get free."""
        left = iter(jobs)
        for job in itertools.islice(left, self._workers):
            self._hand_out(self._start(), job)
        while self._busy:
            pipes = list(self._busy)
            ends = {self._busy[pipe][0].sentinel: pipe for pipe in pipes}
            for ready in wait([*pipes, *ends]):
                pipe = ready if isinstance(ready, Connection) else ends[ready]
                if pipe not in self._busy:
                    continue
                process, job = self._busy.pop(pipe)
                yield job, _result(pipe, process)
                for following in left:
                    self._hand_out((pipe, process), following)
                    break

    def _start(self) -> tuple[Connection, Any]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self._function), daemon=True)
        process.start()
        theirs.close()  # so that its death closes the pipe
        self._stack.callback(_end, process, ours)
        return ours, process

    def _hand_out(self, worker: tuple[Connection, Any], job: Any) -> None:
        pipe, process = worker
        self._busy[pipe] = process, job
        with contextlib.suppress(OSError):  # it is gone already: its sentinel says so
            pipe.send(job)


def _result(pipe: Connection, process: Any) -> Any:
    try:
        kind, value = pipe.recv()
    except (EOFError, OSError):
        process.join()
        code = process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        raise RunError(f"a worker process ended before its work was done ({how}); what is finished is kept") from None
    if kind == "bad input":
        raise UserError(value)
    if kind == "failed":
        raise RunError(f"a worker process failed: {value}")
    return value


def _end(process: Any, pipe: Connection) -> None:
    pipe.close()
    process.kill()
    process.join()


def _work(pipe: Connection, function: Callable[[Any], Any]) -> None:
    """What a worker process does until its pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends its workers
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core
    threading.Thread(target=_follow_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            job = pipe.recv()
            try:
                answer: tuple[str, Any] = "done", function(job)
            except UserError as error:
                answer = "bad input", str(error)
            except OSError as error:
                answer = "failed", f"{error.filename or 'file'}: {error.strerror or error}"
            except Exception as error:  # noqa: BLE001 (told to the parent, which raises it)
                place = traceback.extract_tb(error.__traceback__)[-1]
                answer = "failed", f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
            pipe.send(answer)


def _follow_parent() -> None:
    """End this process when the one that started it is gone."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
    os._exit(1)
