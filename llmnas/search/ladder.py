"""The best subset of layers for every depth, by search: which layers a network can do without."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

Subset = tuple[int, ...]
"""Kept layers, ascending."""
Losses = Callable[[Sequence[Subset]], Sequence[float]]


@dataclass(frozen=True)
class Rung:
    """The best subset that was found of one depth.

    Attributes:
        kept: its layers.
        loss: as the search measured it; the least of `tried` losses, so a little too good.
        tried: subsets of this depth that were measured.
        exhaustive: those were all that are allowed.
    """

    kept: Subset
    loss: float
    tried: int
    exhaustive: bool


def depth_ladder(
    layers: int, depths: Iterable[int], losses: Losses, *, allowed: Callable[[Subset], bool], limit: int, beam: int = 4
) -> dict[int, Rung]:
    """Search the subsets of every depth, from the deepest down.

    Where a depth has at most `limit` subsets, all are measured. Elsewhere a beam goes down a layer at a time: every
    removal of one layer from the `beam` best of the depth above, then the best one is improved by exchanging a kept
    layer for a dropped one until that no longer helps. No subset is measured twice.

    Args:
        layers: of the whole network.
        depths: the rungs, each 1 .. layers.
        losses: measures subsets.
        allowed: which subsets may be used.
        limit: measurements of one depth.
        beam: how many subsets go on to the next depth.

    Raises:
        ValueError: a depth that does not exist, or of which no subset is allowed.
    """
    wanted = set(depths)
    if not wanted <= set(range(1, layers + 1)):
        raise ValueError(f"depths must lie in 1..{layers}, got {sorted(wanted)}")
    known: dict[Subset, float] = {}

    def measure(subsets: Iterable[Subset]) -> None:
        new = [subset for subset in dict.fromkeys(subsets) if subset not in known and allowed(subset)]
        known.update(zip(new, losses(new), strict=True) if new else ())

    found: dict[int, Rung] = {}
    best: list[Subset] = []
    for depth in range(layers, min(wanted) - 1, -1):
        exhaustive = math.comb(layers, depth) <= limit
        if exhaustive:
            measure(combinations(range(layers), depth))
        else:
            removals = [tuple(layer for layer in subset if layer != gone) for subset in best for gone in subset]
            measure(removals[:limit])
            _exchange(layers, depth, known, measure, limit)
        best = _best(known, depth, beam)
        if not best and depth in wanted:
            raise ValueError(f"no subset of {depth} layers is allowed")
        if depth in wanted:
            tried = sum(len(subset) == depth for subset in known)
            found[depth] = Rung(best[0], known[best[0]], tried, exhaustive)
    return found


def _best(known: dict[Subset, float], depth: int, count: int) -> list[Subset]:
    return sorted((s for s in known if len(s) == depth), key=lambda subset: (known[subset], subset))[:count]


def _exchange(
    layers: int, depth: int, known: dict[Subset, float], measure: Callable[[Iterable[Subset]], None], limit: int
) -> None:
    """Improve the best subset of a depth, one layer for another at a time, within `limit` measurements of the depth."""
    while start := _best(known, depth, 1):
        kept = start[0]
        others = [layer for layer in range(layers) if layer not in kept]
        swaps = [tuple(sorted({*kept, new} - {old})) for old in kept for new in others]
        room = limit - sum(len(subset) == depth for subset in known)
        measure([swap for swap in swaps if swap not in known][: max(0, room)])
        if _best(known, depth, 1)[0] == kept:
            return
