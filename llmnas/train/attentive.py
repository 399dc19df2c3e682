"""Attentive sampling: of several networks drawn, the one predicted best or worst is trained.

Wang et al. 2021, "AttentiveNAS": `best` (BestUp) spends updates on the front, `worst` (WorstUp) on the networks that
pull it down. Their candidates have the same FLOPs, here they are of one band of parameters. What predicts is passed in;
the default is a ridge regression on the losses that training has seen, which costs no forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from llmnas.errors import UserError
from llmnas.space import Architecture, SearchSpace
from llmnas.space.encode import features


class Predictor(Protocol):
    """Predicts losses; must say the same on every rank and, given its state, after every resume."""

    @property
    def ready(self) -> bool:
        """Whether it has learned enough to be asked."""
        ...

    def predict(self, archs: Sequence[Architecture]) -> np.ndarray:
        """[n] losses, in any unit that orders them."""
        ...

    def observe(self, archs: Sequence[Architecture], losses: np.ndarray) -> None:
        """Learn from the training losses [n] of one step, averaged over processes."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """Everything that was learned."""
        ...

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Inverse of `state`."""
        ...


class Ridge:
    """Online ridge regression of the training loss on `space.encode.features`, with forgetting.

    Minimises sum_s forget^(t - s) (y_s - w . x_s)^2 + penalty |w|^2 over the networks seen, x with a constant (whose
    weight is penalised too: only differences matter). Old losses fade, since all losses fall while training goes on.

    Args:
        forget: weight of an observation one network later, in (0, 1].
        start: networks seen before it is ready.
    """

    def __init__(self, space: SearchSpace, forget: float = 0.99, start: int = 64, penalty: float = 0.1) -> None:
        self.space = space
        self.forget, self.start, self.penalty = forget, start, penalty
        width = len(features(space, space.smallest())) + 1
        self.gram = np.zeros((width, width))
        self.moment = np.zeros(width)
        self.seen = 0

    @property
    def ready(self) -> bool:
        """Whether `start` networks were seen."""
        return self.seen >= self.start

    def _rows(self, archs: Sequence[Architecture]) -> np.ndarray:
        return np.array([np.append(features(self.space, arch), 1.0) for arch in archs])

    def predict(self, archs: Sequence[Architecture]) -> np.ndarray:
        """[n] losses in nats a token."""
        weight = np.linalg.solve(self.gram + self.penalty * np.eye(len(self.moment)), self.moment)
        return np.asarray(self._rows(archs) @ weight)

    def observe(self, archs: Sequence[Architecture], losses: np.ndarray) -> None:
        """Add the losses [n] of one step; one that is not finite teaches nothing."""
        for row, loss in zip(self._rows(archs), losses, strict=True):
            if np.isfinite(loss):
                self.gram = self.forget * self.gram + np.outer(row, row)
                self.moment = self.forget * self.moment + loss * row
                self.seen += 1

    def state(self) -> dict[str, np.ndarray]:
        """The sums of the normal equations and their number."""
        return {"gram": self.gram, "moment": self.moment, "seen": np.array([self.seen])}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Inverse of `state`.

        Raises:
            UserError: a state of another space, or none.
        """
        if state.keys() != self.state().keys() or state["gram"].shape != self.gram.shape:
            raise UserError("the checkpoint holds no state of the attentive sampler of this space; start afresh")
        self.gram, self.moment, self.seen = state["gram"].copy(), state["moment"].copy(), int(state["seen"][0])


def choose(predictor: Predictor, pool: Sequence[Architecture], pick: str) -> Architecture:
    """The best or the worst of the pool by prediction; its first before the predictor is ready."""
    if not predictor.ready:
        return pool[0]
    losses = predictor.predict(pool)
    return pool[int(np.argmin(losses) if pick == "best" else np.argmax(losses))]
