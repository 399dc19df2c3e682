"""Speculative decoding in numbers: how many passes a draft saves, and what that is worth (Leviathan et al. 2023).

In a round the draft proposes up to `length` tokens, one pass each; the full network checks them in ONE pass and adds a
token of its own. Greedy decoding accepts a proposal while it is the token that the full network would have chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Rounds(NamedTuple):
    """What a speculative run over given texts does.

    Attributes:
        rounds: passes of the full network.
        proposed: passes of the draft.
        accepted: proposals that were right.
        tokens: that were generated.
    """

    rounds: int
    proposed: int
    accepted: int
    tokens: int


class Plan(NamedTuple):
    """A draft's best number of proposals a round, and the speed-up that is expected of it."""

    length: int
    speedup: float
    acceptance: float


def rounds(agreement: Sequence[np.ndarray], length: int) -> Rounds:
    """Replay speculative greedy decoding exactly.

    What the draft proposes after tokens that were all accepted is its choice after the full network's own text, so
    one comparison of choices along that text decides every round.

    Args:
        agreement: for each text, [tokens] bool: whether the draft would choose the full network's token there.
        length: proposals of a round; fewer where the text ends.
    """
    count = proposed = accepted = 0
    for text in agreement:
        place = 0
        while place < len(text):
            tried = min(length, len(text) - place - 1)
            wrong = np.flatnonzero(~text[place : place + tried])
            right = int(wrong[0]) if len(wrong) else tried
            count += 1
            proposed += tried
            accepted += right
            place += right + 1
    return Rounds(count, proposed, accepted, sum(len(text) for text in agreement))


def plan(
    agreement: Sequence[np.ndarray], draft_ms: float, check_ms: Sequence[float], step_ms: float | None = None
) -> Plan:
    """The number of proposals with the greatest speed-up over plain decoding.

    Args:
        agreement: see `rounds`.
        draft_ms: a pass of the draft over one token.
        check_ms: of the full network over 1, 2, ... tokens; the last is for the most proposals plus one.
        step_ms: a plain decoding step; None for `check_ms[0]`.
    """
    step = check_ms[0] if step_ms is None else step_ms
    found = []
    for length in range(1, len(check_ms)):
        run = rounds(agreement, length)
        spent = run.proposed * draft_ms + run.rounds * check_ms[length]
        found.append(Plan(length, run.tokens * step / spent, run.accepted / run.proposed if run.proposed else 0.0))
    return max(found, key=lambda one: one.speedup)
