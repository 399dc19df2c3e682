"""A training whose loss runs away, told at once from what every step prints anyway: its mean cross entropy."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from llmnas.train.schedule import warmup_steps
from llmnas.train.settings import TrainSettings

MEMORY = 64
"""Steps of the running mean: each moves it by 1 / MEMORY."""
RECENT = 4
"""Steps whose mean is compared with it; one hard batch is no divergence."""
DEVIATIONS = 4.0
"""A rise of so many; a step alone has to rise by RECENT times as many."""
LEAST = 0.1
"""Nats that a rise has at least."""
MARGIN = 1.05
"""Of the loss of guessing uniformly: what a network draws at first lies a little above."""
CALM = 2.0
"""Deviations within which a step is as it should be."""
WILD = 2.0
"""Times that loss (or the first one) which no warm-up excuses."""


class Divergence:
    """Watches the loss of a training.

    After warm-up a loss above that of guessing uniformly, ln(vocabulary), and at any time a rise above the running
    mean by `DEVIATIONS` of its deviations (the recent mean, so that noise averages out). Where a phase of `progressive`
    opens other networks, a rise means nothing and the mean begins anew.

    Attributes:
        calm: the newest step whose loss was as it should be: the weights before it were good.
    """

    def __init__(self, settings: TrainSettings, vocab_size: int) -> None:
        self._uniform = math.log(vocab_size)
        self._warm = warmup_steps(settings)
        self._starts = {phase.start for phase in settings.sampler.phases}
        self._cut = settings.init_from is not None  # parts of a pretrained model may begin anywhere
        self.calm = 0
        self._first = math.nan
        self._mean = self._square = 0.0
        self._seen = 0
        self._risen = False
        self._recent: list[float] = []

    def see(self, step: int, loss: float) -> str | None:
        """Why the loss of a step (from 0; nats a token) is too high, when it begins to be; None where it is not new.

        A loss that is not finite says nothing: its update was skipped, and skipped updates are counted elsewhere.
        """
        if step in self._starts:
            self._recent, self._mean, self._square, self._seen, self._risen = [], 0.0, 0.0, 0, False
        if not math.isfinite(loss):
            return None
        self._first = loss if math.isnan(self._first) else self._first
        before, self._recent = self._recent, [*self._recent[1 - RECENT :], loss]
        why = self._above_guessing(step) or self._above_mean()
        fresh, self._risen = why is not None and not self._risen, why is not None
        if why is None:
            if loss <= self._bound(step) and not self._apart(loss) > CALM * self._deviation:
                self.calm = step
            if len(before) == RECENT:  # the mean is of what lies behind the recent steps, or they would raise it
                self._learn(before[0])
        return f"step {step}: loss {loss:.3f}, {why}" if fresh else None

    @property
    def _weight(self) -> float:
        return 1 - (1 - 1 / MEMORY) ** self._seen

    @property
    def _deviation(self) -> float:
        return math.sqrt(self._square / self._weight) if self._seen >= MEMORY // 2 else math.inf

    def _apart(self, loss: float) -> float:
        return loss - self._mean / self._weight if self._seen else 0.0

    def _bound(self, step: int) -> float:
        if step >= self._warm:
            return MARGIN * self._uniform
        return math.inf if self._cut else WILD * max(self._uniform, self._first)

    def _above_guessing(self, step: int) -> str | None:
        recent = self._recent[-max(1, step - self._warm + 1) :]
        if sum(recent) / len(recent) <= self._bound(step):
            return None
        return f"above {self._uniform:.3f}, that of guessing uniformly"

    def _above_mean(self) -> str | None:
        rise = self._apart(sum(self._recent) / len(self._recent))
        if rise < LEAST or rise <= DEVIATIONS * self._deviation:
            return None
        number = f"{rise / self._deviation:.1f}" if self._deviation else "infinitely many"
        mean = self._mean / self._weight
        return f"in the last steps {rise:.3f} ({number} deviations) above its running mean {mean:.3f}"

    def _learn(self, loss: float) -> None:
        """Move the running mean, and the mean square of what lies around it; both begin at 0, as Adam's."""
        self._square += (self._apart(loss) ** 2 - self._square) / MEMORY
        self._mean += (loss - self._mean) / MEMORY
        self._seen += 1

    def state(self) -> dict[str, np.ndarray]:
        """Everything that was learned, so that a run that goes on is told the same at the same steps."""
        numbers = [self.calm, self._first, self._mean, self._square, self._seen, self._risen]
        return {"numbers": np.array(numbers, dtype=np.float64), "recent": np.array(self._recent, dtype=np.float64)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Inverse of `state`; a checkpoint without one begins anew."""
        if not state:
            return
        calm, first, mean, square, seen, risen = state["numbers"].tolist()
        self.calm, self._seen, self._risen = int(calm), int(seen), bool(risen)
        self._first, self._mean, self._square = first, mean, square
        self._recent = state["recent"].tolist()
