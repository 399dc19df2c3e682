"""How many CPU threads a step has: measured, written down, and replayed where a run goes on.

The number of threads changes the order of sums and so the last bits of a result. With `train.threads: auto` it is
therefore part of the run: `threads.json` beside the checkpoints says from which step on which number holds. It is
written before the first step with that number, and only at a step that has a checkpoint, so a run that is stopped
anywhere does the same steps with the same numbers again.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import torch
from pydantic import BaseModel as Model
from pydantic import ConfigDict, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from llmnas.cost.device import available_cores
from llmnas.errors import UserError
from llmnas.files import read_json, write_json
from llmnas.train.agreement import all_of
from llmnas.train.engine import Engine
from llmnas.train.processes import Processes
from llmnas.train.settings import TrainSettings

FILE = "threads.json"
ROUNDS = 4  # steps that are timed with either number, in turn; the anchors of a sampler come every fourth step
DECISIVE = 2.0  # a number so much slower is not timed again
BETTER = 1.1  # a switch must promise so much
WINDOW = 8  # steps whose median pace is compared
CHANGED = 1.4  # steps that much slower or faster than they were are worth another look
SHARE = 10  # between two looks a run trains at least so many times what a look takes


class Choice(Model):
    """From a step on: so many threads.

    Attributes:
        step: the first with that number, from 0.
        threads: of torch.
        seconds: of a rehearsed step by number of threads, on the slowest process.
        pace: seconds of a step (median) once the run was under way with that number.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    step: NonNegativeInt
    threads: PositiveInt
    seconds: dict[PositiveInt, PositiveFloat]
    pace: PositiveFloat | None = None


class _File(Model):
    model_config = ConfigDict(extra="forbid")

    processes: PositiveInt
    choices: list[Choice]


def most_threads(processes: Processes) -> int:
    """OMP_NUM_THREADS, else the cores shared among the processes of this machine: more run slower than one."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    shared = max(1, available_cores() // processes.local_size)
    return (int(asked) if asked.isdecimal() else 0) or shared


def set_threads(settings: TrainSettings, processes: Processes, folder: Path | None = None) -> None:
    """For work that trains nothing: as the config says; `auto`: as the training in `folder` ended, else all."""
    most = most_threads(processes)
    if settings.threads == "auto":
        made = stored(folder)
        torch.set_num_threads(min(made[-1].threads, most) if made else most)
    else:
        torch.set_num_threads(settings.threads or most)


def stored(folder: Path | None, processes: int | None = None) -> list[Choice]:
    """The choices of the training whose checkpoints are in `folder`, in order of steps.

    Args:
        processes: none where there were not so many: their steps are others; None for any.

    Raises:
        UserError: the file is damaged.
    """
    if folder is None or not (folder / FILE).exists():
        return []
    try:
        found = _File.model_validate(read_json(folder / FILE))
    except (UserError, ValidationError):
        found = None
    if not found or not found.choices or any(a.step >= b.step for a, b in pairwise(found.choices)):
        raise UserError(f"{folder / FILE}: damaged; delete it to measure the number of threads again")
    return found.choices if processes in (None, found.processes) else []


class Threads:
    """The number of threads of every step of one training.

    Args:
        settings: of the run; only `threads: auto` is ever measured.
        engine: of the run. Steps on a GPU, and those whose weights are divided among processes, are not measured: they
            have all threads.
        folder: of the checkpoints; None keeps nothing.
        rehearse: does the work of a step and leaves no trace.
        now: seconds.

    Attributes:
        choices: made so far.
    """

    def __init__(
        self,
        settings: TrainSettings,
        engine: Engine,
        folder: Path | None,
        rehearse: Callable[[int], None],
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._engine, self._folder, self._rehearse, self._now = engine, folder, rehearse, now
        most = most_threads(engine.processes)
        self._fixed = most if settings.threads == "auto" else settings.threads or most
        measured = settings.threads == "auto" and engine.device.type == "cpu" and not engine.everyone_runs
        if measured:  # one process's limit holds for all
            most = min(all_of(most, engine.processes.size))
        self._measured, self._numbers = measured, (1, most) if measured and most > 1 else ()
        self._last = settings.steps - 1
        self.choices: list[Choice] = []
        self._pace: deque[float] = deque(maxlen=WINDOW)
        self._trained, self._took = 0.0, 0.0  # seconds since the last look, and of it

    def start(self, step: int) -> None:
        """Begin at this step: with the number that is written down for it, else one is looked for. Collective."""
        if self._measured:
            size = self._engine.processes.size
            self.choices = all_of(stored(self._folder, size), size)[0]
            if self._numbers and not self._in_force(step):
                self.look(step)

    def _in_force(self, step: int) -> Choice | None:
        return next((choice for choice in reversed(self.choices) if choice.step <= step), None)

    @contextlib.contextmanager
    def of(self, step: int) -> Iterator[None]:
        """While entered, the step (from 0) has its number; its time is noted."""
        choice = self._in_force(step)
        number = choice.threads if choice else self._fixed
        if torch.get_num_threads() != number:
            torch.set_num_threads(number)
            self._pace.clear()
        begun = self._now()
        yield
        if choice:
            seconds = self._now() - begun
            self._trained += seconds
            self._pace.append(seconds)
            if choice.pace is None and len(self._pace) == WINDOW:
                choice.pace = statistics.median(self._pace)
                self._write()

    def changed(self, step: int) -> bool:
        """Whether another look is due: steps have become slower or faster; a replay never looks.

        Slower or faster than they were, and after the first look also than they were rehearsed: a run often starts
        together with other programs, and what was measured in that rush holds no longer.
        """
        if not self._numbers or len(self._pace) < WINDOW or step <= self.choices[-1].step:
            return False
        last, now = self.choices[-1], statistics.median(self._pace)
        before = [last.pace or now, *([last.seconds[last.threads]] if len(self.choices) == 1 else [])]
        return self._trained > SHARE * self._took and any(not 1 / CHANGED < now / past < CHANGED for past in before)

    def look(self, step: int) -> None:
        """Time rehearsed steps with one thread and with all; what is faster holds from this step on. Collective.

        The caller has a checkpoint of this step, or it is the first of this start.
        """
        begun = self._now()
        seconds = self._measure(step)
        present, best = self._in_force(step), min(seconds, key=seconds.__getitem__)
        if present and seconds.get(present.threads, float("inf")) < BETTER * seconds[best]:
            best = present.threads
        self.choices.append(Choice(step=step, threads=best, seconds=seconds))
        self._write()
        self._pace.clear()
        self._trained, self._took = 0.0, self._now() - begun

    def _measure(self, step: int) -> dict[int, float]:
        self._timed(1, step)  # memory and caches are warm afterwards, whichever comes first
        spent = dict.fromkeys(self._numbers, 0.0)
        rounds = 0
        while rounds < ROUNDS and max(spent.values()) <= DECISIVE * min(spent.values()):
            turn = [self._timed(number, min(step + rounds, self._last)) for number in self._numbers]
            every = all_of(turn, self._engine.processes.size)
            for number, times in zip(self._numbers, zip(*every, strict=True), strict=True):
                spent[number] += max(times)
            rounds += 1
        return {number: total / rounds for number, total in spent.items()}

    def _timed(self, number: int, step: int) -> float:
        torch.set_num_threads(number)
        begun = self._now()
        self._rehearse(step)
        return self._now() - begun

    def _write(self) -> None:
        if self._folder is not None and self._engine.processes.rank == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            found = _File(processes=self._engine.processes.size, choices=self.choices)
            write_json(self._folder / FILE, found.model_dump(mode="json"))

    def used(self, steps: int) -> list[tuple[int, int]]:
        """(first step, threads) of every stretch of a run of so many steps."""
        if not self.choices:
            return [(0, self._fixed)]
        return [(choice.step, choice.threads) for choice in self.choices if choice.step < steps]
