"""Training sequences from several sources by weight, the n-th one still a pure function of (seed, n).

Letters: S tokens in a sequence, B sequences in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from typing import final

import numpy as np

from llmnas.data.sequences import Sequences
from llmnas.data.shuffle import shuffled
from llmnas.errors import UserError

PERIOD = 4096
"""Sequences in which every source has its share exactly, to the nearest whole one."""


@final
class Mixture:
    """An endless stream that takes its sequences from several, each in its own order.

    Every `PERIOD` sequences hold the same number of each source, in an order of their own, so how far a source has been
    read is known without a count.
    """

    def __init__(self, parts: Several[Sequences], weights: Several[float], seed: int) -> None:
        """Mix `parts` of one tokenizer and S.

        Raises:
            UserError: a weight so small that a source would never be read.
        """
        self.parts, self.seed = tuple(parts), seed
        self.seq, self.eos_id = parts[0].seq, parts[0].eos_id
        self.counts = shares(weights, PERIOD)
        if not self.counts.all():
            least = min(weights)
            raise UserError(
                f"data.tokens: a weight of {least:g} among {sum(weights):g} is less than one sequence in {PERIOD}; "
                "raise it, or leave the store out"
            )
        self._ends = np.cumsum(self.counts)

    def batch(self, first: int, count: int) -> np.ndarray:
        """Sequences first .. first + count - 1 of the stream, `[B, S + 1]` int64."""
        numbers = np.arange(first, first + count)
        owners, places = self.sources(numbers)
        found = np.empty((count, self.seq + 1), dtype=np.int64)
        for i, (owner, place) in enumerate(zip(owners, places, strict=True)):
            found[i] = self.parts[owner].batch(int(place), 1)[0]
        return found

    def sources(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which part, which sequence of it) of sequences `[B]` of the stream."""
        periods, inside = np.divmod(numbers, PERIOD)
        slots = np.empty(len(numbers), dtype=np.int64)
        for period in np.unique(periods):
            here = periods == period
            slots[here] = shuffled(inside[here], PERIOD, self.seed, "mixture", int(period))
        owners = np.searchsorted(self._ends, slots, side="right")
        begins = self._ends - self.counts
        return owners, periods * self.counts[owners] + slots - begins[owners]

    def fixed(self, count: int) -> np.ndarray:
        """At most `count` windows, of each source its share; as `Sequences.fixed`."""
        wanted = shares(self.counts.tolist(), count)
        return np.concatenate([part.fixed(int(n)) for part, n in zip(self.parts, wanted, strict=True) if n])


def shares(weights: Several[float], total: int) -> np.ndarray:
    """Whole numbers of sum `total` in proportion to weights, `[n]`, by largest remainder (Hamilton's method)."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * total
    found = np.floor(exact).astype(np.int64)
    most = np.argsort(found - exact, kind="stable")[: total - int(found.sum())]
    found[most] += 1
    return found
