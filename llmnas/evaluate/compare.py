"""Is A better than B, and when is it known? Paired differences on the same windows, and racing.

What makes a window of text hard is common to all networks, so two of them are compared by the differences of
their losses on the same tokens. Tokens of one window depend on each other: the sampling unit is the window, its
value the mean difference over its tokens. Windows are drawn in an order without regard to the text, and
their means are taken to be about normal (a hundred tokens or more each).

A race looks at the differences after so many windows, several times. A look that stands alone is wrong with
probability alpha; looking again and again is wrong more often. Here the error is spent: pair p at look k uses a
t interval of level 1 - alpha / (pairs * looks), so that by the union bound ALL intervals of ALL looks cover their
differences together with probability 1 - alpha, whatever the looks have in common (Bonferroni; the
group-sequential form with equal spending). A candidate that an interval puts behind another is out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

Losses = Callable[[int, np.ndarray], np.ndarray]
"""(candidate, window numbers [n]) -> [n] mean losses of those windows, nats a token."""


class Comparison(NamedTuple):
    """Candidate `a` less candidate `b` in nats a token; below zero `a` is better.

    Attributes:
        mean: of the paired differences.
        half: half the width of its interval.
        windows: that both were run on.
    """

    a: int
    b: int
    mean: float
    half: float
    windows: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return abs(self.mean) > self.half

    def within(self, tolerance: float) -> bool:
        """Whether the interval lies inside of plus and minus `tolerance`: a difference that does not matter."""
        return abs(self.mean) + self.half <= tolerance

    def sentence(self, names: Sequence[str], cheaper: int | None = None) -> str:
        """'A beats B by x +- y nats', or that they cannot be told apart and which is cheaper."""
        interval = f"{abs(self.mean):.4f} ± {self.half:.4f} nats"
        if self.clear:
            better, worse = (self.a, self.b) if self.mean < 0 else (self.b, self.a)
            return f"{names[better]} beats {names[worse]} by {interval}"
        text = f"{names[self.a]} and {names[self.b]} are indistinguishable ({self.mean:+.4f} ± {self.half:.4f} nats)"
        return text if cheaper is None else f"{text}: the cheaper one, {names[cheaper]}"


def compare(a: np.ndarray, b: np.ndarray, alpha: float = 0.05, names: tuple[int, int] = (0, 1)) -> Comparison:
    """Two networks on the same windows, with the t interval of level 1 - alpha.

    Args:
        a, b: [windows] mean losses.

    Raises:
        ValueError: another number of windows for each, or fewer than two.
    """
    if np.ndim(a) != 1 or np.size(a) < 2 or np.shape(a) != np.shape(b):
        raise ValueError(f"needs two or more windows, the same for both, got {np.shape(a)} and {np.shape(b)}")
    delta = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    n = len(delta)
    half = _quantile(1 - alpha / 2, n - 1) * float(delta.std(ddof=1)) / math.sqrt(n)
    return Comparison(*names, float(delta.mean()), half, n)


@lru_cache(maxsize=1024)
def _quantile(level: float, freedom: int) -> float:
    """Of Student's t; a race asks for the same few again and again."""
    return float(stats.t.ppf(level, freedom))


Reason = Literal["decided", "equal", "exhausted"]


@dataclass(frozen=True)
class Race:
    """How a race ended.

    Attributes:
        winner: the candidate to take: the cheapest of those left.
        left: candidates that no other one was shown to beat.
        reason: `decided`: one is left; `equal`: those left differ by less than the tolerance; `exhausted`:
            there were no more windows.
        comparisons: the winner with every other candidate, at the last look that both took part in.
        windows: that each candidate was run on.
    """

    winner: int
    left: tuple[int, ...]
    reason: Reason
    comparisons: tuple[Comparison, ...]
    windows: tuple[int, ...]


def looks_at(total: int, first: int) -> list[int]:
    """Windows at each look: doubling from `first` until all."""
    sizes = []
    size = min(first, total)
    while size < total:
        sizes.append(size)
        size *= 2
    return [*sizes, total]


def race(
    losses: Losses, costs: Sequence[float], order: np.ndarray, *,
    first: int = 16, alpha: float = 0.05, tolerance: float = 0.0,
) -> Race:  # fmt: skip
    """Run candidates on more and more windows until more of them cannot change the choice.

    The probability that the best candidate is thrown out, or that any stated interval is wrong, is at most
    `alpha`. Where candidates cannot be told apart, the cheapest is taken.

    Args:
        losses: see `Losses`; called for candidates that are still in, with windows not yet run.
        costs: [candidates], what decides among equals.
        order: [windows] the numbers of the windows in the order to use them, random.
        first: windows of the first look, at least 2.
        tolerance: nats; differences inside of it count as equal.

    Raises:
        ValueError: no candidate, or fewer than two windows.
    """
    count = len(costs)
    if count < 1 or min(first, len(order)) < 2:
        raise ValueError(f"a race needs a candidate and two windows, got {count} and {min(first, len(order))}")
    looks = looks_at(len(order), first)
    share = alpha / max(1, count * (count - 1) // 2) / len(looks)
    found = [np.empty(0) for _ in range(count)]
    left = list(range(count))
    reason: Reason = "exhausted"
    for size in looks:
        if len(left) == 1:
            break
        for i in left:
            found[i] = np.concatenate([found[i], losses(i, order[len(found[i]) : size])])
        pairs = [compare(found[i], found[j], share, (i, j)) for i in left for j in left if i != j]
        beaten = {pair.b for pair in pairs if pair.clear and pair.mean < 0}
        left = [i for i in left if i not in beaten]
        if len(left) > 1 and all(pair.within(tolerance) for pair in pairs if {pair.a, pair.b} <= set(left)):
            reason = "equal"
            break
    if len(left) == 1:
        reason = "decided"
    winner = min(left, key=lambda i: (costs[i], i))
    shared = [min(len(found[winner]), len(found[i])) for i in range(count)]
    comparisons = tuple(
        compare(found[winner][:n], found[i][:n], share, (winner, i))
        for i, n in enumerate(shared)
        if i != winner and n >= 2
    )
    return Race(winner, tuple(left), reason, comparisons, tuple(len(f) for f in found))
