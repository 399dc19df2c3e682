"""Metrics of extreme magnitudes, whose squares floating point cannot hold."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

_ORDINARY = (1e-100, 1e100)


def unit_of(values: ArrayLike) -> float:
    """What to divide a metric's values [n] by: 1 where their magnitude is ordinary, else the greatest magnitude."""
    greatest = float(np.abs(np.asarray(values, dtype=np.float64)).max())
    return 1.0 if greatest == 0 or _ORDINARY[0] <= greatest <= _ORDINARY[1] else greatest
