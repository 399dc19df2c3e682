"""Training sequences out of stored tokens, in an order that is computed from (seed, number).

Letters: T tokens, S tokens in a sequence, B sequences in a batch.
"""

from __future__ import annotations

from typing import final

import numpy as np

from llmnas.data.shuffle import shuffled
from llmnas.data.tokenizer import EOS_ID
from llmnas.data.tokens import Tokens
from llmnas.errors import UserError
from llmnas.rng import generator


@final
class Sequences:
    """An endless stream of training sequences whose n-th one is a pure function of (seed, n).

    Epoch e = n // per_epoch cuts the tokens into windows of S, starting at an offset of its own, and takes them
    in an order of its own: every window once. A sequence is a window and the token after it, so inputs are
    `[:, :-1]` and targets `[:, 1:]`. Any rank or resumed run that knows n reads on from there; no state is saved.
    """

    def __init__(
        self, tokens: Tokens, seq: int, seed: int, eos_id: int = EOS_ID, learned: Tokens | None = None
    ) -> None:
        """Look at `tokens`, `[T]`, in sequences of `seq` (S) targets; `eos_id` ends a document.

        Where `learned` (`[T]`, 1 or 0) is given, a token that is 0 there is read but is no target: sequences hold
        -1 - id for it, which `split_windows` of the supernet takes apart.

        Raises:
            UserError: T < S + 1.
        """
        if len(tokens) < seq + 1:
            raise UserError(
                f"the corpus has {len(tokens)} tokens, fewer than one sequence of {seq} + 1; give more text"
            )
        self.tokens, self.seq, self.seed, self.eos_id, self.learned = tokens, seq, seed, eos_id, learned
        # As many windows as fit at any offset below S, so that every epoch is equally long (at least one).
        self.per_epoch = max(1, len(tokens) // seq - 1)

    def batch(self, first: int, count: int) -> np.ndarray:
        """Sequences first .. first + count - 1 of the stream, `[B, S + 1]` int64."""
        epochs, places = np.divmod(np.arange(first, first + count), self.per_epoch)
        starts = np.empty(count, dtype=np.int64)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            starts[inside] = self._starts(int(epoch), places[inside])
        return self._read(starts)

    def fixed(self, count: int) -> np.ndarray:
        """Evenly spread windows for evaluation, always the same ones, none overlapping.

        Returns `[B, S + 1]` int64 with B = `count`, or all (T - 1) // S windows where there are fewer; windows
        without a target are passed over.
        """
        windows = np.arange((len(self.tokens) - 1) // self.seq)
        if self.learned is not None:
            inside = (self.learned[first * self.seq + 1 + np.arange(self.seq)] for first in windows)
            windows = windows[[bool(np.any(targets)) for targets in inside]]
        count = min(count, len(windows))
        if not count:
            raise UserError(
                "no window of the text holds a token to learn from: data.loss_on: completions needs answers"
            )
        return self._read(windows[(2 * np.arange(count) + 1) * len(windows) // (2 * count)] * self.seq)

    def _starts(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """First token of the sequences at `places` of an epoch's order."""
        # Any offset at which the epoch still fits, so that no token is left out of every epoch.
        offset = generator(self.seed, "epoch", epoch).integers(len(self.tokens) - self.per_epoch * self.seq)
        return offset + self.seq * shuffled(places, self.per_epoch, self.seed, "order", epoch)

    def _read(self, starts: np.ndarray) -> np.ndarray:
        """Copy the sequences that begin at `starts`, `[B]`, out of the memory map."""
        places = starts[:, None] + np.arange(self.seq + 1)
        ids = np.asarray(self.tokens[places], dtype=np.int64)
        return ids if self.learned is None else np.where(np.asarray(self.learned[places]) == 1, ids, -1 - ids)
