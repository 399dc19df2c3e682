"""Two streams of training sequences that share no token: one trains weights, the other what depends on them.

Letters: T tokens, S tokens in a sequence, B sequences in a batch.
"""

from __future__ import annotations

from typing import final

import numpy as np

from llmnas.data.shuffle import shuffled
from llmnas.data.tokens import Tokens
from llmnas.errors import UserError


@final
class Half:
    """An endless stream over some of the windows of S tokens, whose n-th sequence is a function of (seed, n)."""

    def __init__(self, tokens: Tokens, seq: int, seed: int, part: range, windows: int) -> None:
        self.tokens, self.seq, self.seed = tokens, seq, seed
        self.part, self.windows = part, windows

    def batch(self, first: int, count: int) -> np.ndarray:
        """Sequences first .. first + count - 1, `[B, S + 1]` int64; every epoch has an order of its own."""
        epochs, places = np.divmod(np.arange(first, first + count), len(self.part))
        chosen = np.empty(count, dtype=np.int64)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            order = shuffled(places[inside], len(self.part), self.seed, "half", self.part.start, int(epoch))
            chosen[inside] = self.part.start + order
        starts = self.seq * shuffled(chosen, self.windows, self.seed, "halves")
        return np.asarray(self.tokens[starts[:, None] + np.arange(self.seq + 1)], dtype=np.int64)


def halves(tokens: Tokens, seq: int, seed: int, share: float) -> tuple[Half, Half]:
    """Divide the windows of `tokens`, [T], at random: about 1 - `share` and `share` of them.

    Windows do not overlap but for the one token behind each, which is only a target. Text is mixed window by window:
    a corpus in order of time would otherwise give the second part another time.

    Raises:
        UserError: fewer than one window for each.
    """
    windows = (len(tokens) - 1) // seq
    second = round(windows * share)
    if not 0 < second < windows:
        raise UserError(
            f"the corpus has {len(tokens)} tokens: too few to keep {share:.0%} of its sequences of {seq} apart"
        )
    first = windows - second
    return Half(tokens, seq, seed, range(first), windows), Half(tokens, seq, seed, range(first, windows), windows)
