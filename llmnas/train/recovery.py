"""What a training does about a loss that runs away: warn, stop, or go back and train that part with a lower rate.

Where it went back is part of the run: `rewinds.json` beside the checkpoints says from which step until which the rate
is lower. It is written after the checkpoints of the bad part are put aside and the good one is loaded, which changes
nothing on disk, so that a run that is killed anywhere does the same again, and one that goes on later does the same
steps with the same rates.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from pydantic import BaseModel as Model
from pydantic import ConfigDict, NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter, ValidationError
from torch import Tensor

from llmnas.errors import RunError, UserError
from llmnas.files import read_json, write_json
from llmnas.train.agreement import all_of
from llmnas.train.checkpoint import Checkpoints, Keep, name_of, newest, saved_steps
from llmnas.train.divergence import Divergence
from llmnas.train.engine import Engine, Step
from llmnas.train.health import Skips
from llmnas.train.schedule import learning_rate
from llmnas.train.settings import TrainSettings

_LOG = logging.getLogger(__name__)
FILE = "rewinds.json"
MOST = 10
"""Times that a run goes back; then its rate is wrong altogether."""


class Rewind(Model):
    """Steps `start` to `end` (exclusive) were trained anew with `lr` times the rate, since `why`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    start: NonNegativeInt
    end: PositiveInt
    lr: PositiveFloat
    why: str


def stored(folder: Path | None) -> list[Rewind]:
    """Where the training whose checkpoints are in `folder` went back, in the order in which it did.

    Raises:
        UserError: the file is damaged.
    """
    if folder is None or not (folder / FILE).exists():
        return []
    try:
        return TypeAdapter(list[Rewind]).validate_python(read_json(folder / FILE))
    except (UserError, ValidationError):
        raise UserError(
            f"{folder / FILE}: damaged; delete it to go on with the full rate, or {folder} to train anew"
        ) from None


def kept(settings: TrainSettings) -> Keep:
    """Which checkpoints a run keeps: one that may go back needs those at multiples of `train.save_every`."""
    return Keep(settings.keep, settings.save_every if settings.on_divergence == "rewind" else 0)


class Steps:
    """The steps of a training that are left, one after the other."""

    def __init__(self, first: int, end: int) -> None:
        self._next, self._end = first, end

    def __iter__(self) -> Steps:
        return self

    def __next__(self) -> int:
        if self._next >= self._end:
            raise StopIteration
        self._next += 1
        return self._next - 1

    def back(self, step: int) -> None:
        """Go on with this one."""
        self._next = step


class Recovery:
    """Looks at the loss of every step, and does what `train.on_divergence` says. The same on every rank.

    Args:
        checkpoints: of the run, which hold what `watch` has learned too.
        folder: of the checkpoints; None keeps none, and nothing can be gone back to.
        skips: counts updates without a finite gradient; too many in a row are a divergence as well.
    """

    def __init__(
        self, settings: TrainSettings, engine: Engine, checkpoints: Checkpoints, folder: Path | None,
        watch: Divergence, skips: Skips,
    ) -> None:  # fmt: skip
        self._settings, self._engine, self._folder = settings, engine, folder
        self._checkpoints, self._watch, self._skips = checkpoints, watch, skips
        self.rewinds: list[Rewind] = []

    def start(self, step: int) -> None:
        """Begin at this step: what was gone back to before holds again. Collective."""
        self.rewinds = all_of(stored(self._folder), self._engine.processes.size)[0]
        if self._settings.on_divergence == "rewind" and step == 0:
            self._checkpoints.save(0)

    def rate(self, step: int) -> float:
        """The learning rate of a step: lower for each time that it was gone back over."""
        rate = learning_rate(step, self._settings)
        for rewind in self.rewinds:
            if rewind.start <= step < rewind.end:
                rate *= rewind.lr
        return rate

    def look(self, step: int, means: Tensor, result: Step) -> int | None:
        """Look at what a step did; the step to go on with where that is not the next one. Collective.

        Args:
            step: from 0.
            means: [networks] cross entropies, the same on every rank.
            result: of the optimizer.

        Raises:
            RunError: the loss ran away and the run is to stop, or has gone back too often, or nowhere is left.
        """
        rewinds = self._settings.on_divergence == "rewind"
        self._skips.count(step + 1, result, patient=rewinds)
        why = self._watch.see(step, float(means.mean()) if result.applied else float("nan"))
        if rewinds and (self._skips.exhausted or (self._skips.in_a_row and step + 1 == self._settings.steps)):
            why = f"step {step}: no finite gradient in the last {self._skips.in_a_row} steps"
        if why is None:
            return None
        if self._settings.on_divergence == "warn":
            self._say(f"{why}; training goes on (train.on_divergence: warn); lower train.lr (now {self._settings.lr})")
            return None
        good = self._good()
        if not rewinds or good is None or len(self.rewinds) >= MOST:
            raise RunError(self._end(why, good))
        return self._go_back(step, good, why)

    def _good(self) -> int | None:
        """The newest whole checkpoint from before the rise; collective.

        None that only a stop of this run made, or it would matter. A damaged one is named and passed over.
        """
        if self._folder is None:
            return None
        regular = [step for step in saved_steps(self._folder) if step % self._settings.save_every == 0]
        calm = [step for step in reversed(regular) if step <= self._watch.calm]
        for step in all_of(calm, self._engine.processes.size)[0]:
            damage = self._checkpoints.damage(step)
            if damage is None:
                return step
            self._say(f"{damage}; looking for an older checkpoint to go back to")
        return None

    def _end(self, why: str, good: int | None) -> str:
        """Why the run ends, and what is left; checkpoints of the bad part are put aside."""
        if self.rewinds and len(self.rewinds) >= MOST:
            why = f"{why}; it was gone back {MOST} times"
        if good is None:
            left = "no checkpoint from before the rise is left" if self._folder else newest(None)
        else:
            self._put_aside(good)
            left = newest(self._folder)
        advice = f"lower train.lr (now {self._settings.lr}) in another --run-dir"
        if self._settings.on_divergence == "stop" and good is not None:
            advice += ", or go on from there with --resume --set train.on_divergence=rewind"
        return f"{why}: {left}; {advice}"

    def _go_back(self, step: int, good: int, why: str) -> int:
        """Load the checkpoint after `good` steps, write down what is gone back over; the step to go on with."""
        self._put_aside(good)
        start = self._checkpoints.restore()  # what is written and said is what was loaded
        rewind = Rewind(start=start, end=2 * (step + 1) - start, lr=self._settings.rewind_lr, why=why)
        self.rewinds.append(rewind)
        if self._folder is not None and self._engine.processes.rank == 0:
            write_json(self._folder / FILE, [item.model_dump(mode="json") for item in self.rewinds])
        self._engine.barrier()
        self._skips.in_a_row = 0
        self._say(f"{why}; back to step {start}, with {rewind.lr:g} times the learning rate until step {rewind.end}")
        return start

    def _put_aside(self, good: int) -> None:
        """Rename checkpoints newer than `good`, the newest first: what a kill leaves is still in order. Collective."""
        if self._folder is not None and self._engine.processes.rank == 0:
            for bad in reversed([step for step in saved_steps(self._folder) if step > good]):
                aside = self._folder / f"{name_of(bad)}.diverged"
                shutil.rmtree(aside, ignore_errors=True)
                (self._folder / name_of(bad)).rename(aside)
        self._engine.barrier()

    def _say(self, line: str) -> None:
        if self._engine.processes.rank == 0:
            _LOG.warning("%s", line)
