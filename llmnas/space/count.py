"""Counting the fillings of layers exactly, where some choices make no difference to a layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

from llmnas.space.architecture import LayerSpec


def count_fillings(options: set[LayerSpec], depth: int, shared: Sequence[tuple[str, int]]) -> Fraction:
    """How much one setting of the shared dimensions adds to the number of different networks of a depth.

    A shared dimension that no layer of a network uses (the heads of a network without mixers) gives the
    same network under each of its values: every setting that leads to it counts for its share, so that the sum
    over all settings is the exact number. Networks are grouped by which shared dimensions they use,
    each group counted by inclusion and exclusion.

    Args:
        options: what one layer may be under this setting.
        depth: kept layers.
        shared: (name, number of values) of every shared dimension.
    """
    sometimes = [(name, n) for name, n in shared if n > 1 and not all(spec.uses(name) for spec in options)]
    total = Fraction(0)
    for used in itertools.product((False, True), repeat=len(sometimes)):
        barred = [name for (name, _), use in zip(sometimes, used, strict=True) if not use]
        wanted = [name for (name, _), use in zip(sometimes, used, strict=True) if use]
        exactly = 0
        for r in range(len(wanted) + 1):
            for left_out in itertools.combinations(wanted, r):
                without = (*barred, *left_out)
                fitting = sum(not any(spec.uses(name) for name in without) for spec in options)
                exactly += (-1) ** r * fitting**depth
        total += Fraction(exactly, math.prod(n for name, n in sometimes if name in barred))
    return total
