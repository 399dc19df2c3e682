"""Does the supernet rank architectures as stand-alone training does, and are two models really different?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

from llmnas.evaluate.compare import compare
from llmnas.rng import generator


class Agreement(NamedTuple):
    """Rank correlation with a 95 % bootstrap interval of Kendall's tau."""

    tau: float
    low: float
    high: float
    spearman: float


def rank_agreement(predicted: np.ndarray, actual: np.ndarray, seed: int = 0, resamples: int = 2000) -> Agreement:
    """Kendall's tau-b and Spearman's rho between two scores of the same architectures.

    The interval resamples architectures with replacement (percentile bootstrap). A score that is the same for all
    architectures ranks nothing: 0 where the coefficients are undefined.

    Args:
        predicted: [K].
        actual: [K].
    """
    if np.ptp(predicted) == 0 or np.ptp(actual) == 0:
        return Agreement(0.0, 0.0, 0.0, 0.0)
    rng = generator(seed, "bootstrap")
    draws = []
    for _ in range(resamples):
        chosen = rng.integers(len(actual), size=len(actual))
        tau = stats.kendalltau(predicted[chosen], actual[chosen]).statistic
        if np.isfinite(tau):
            draws.append(tau)
    low, high = np.percentile(draws, [2.5, 97.5]) if draws else (-1.0, 1.0)
    tau = float(stats.kendalltau(predicted, actual).statistic)
    return Agreement(tau, float(low), float(high), float(stats.spearmanr(predicted, actual).statistic))


class Difference(NamedTuple):
    """Mean of paired differences with its 95 % t interval."""

    mean: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out; otherwise the difference is within seed noise."""
        return self.low > 0 or self.high < 0


def paired_difference(a: np.ndarray, b: np.ndarray) -> Difference:
    """a - b over runs paired by seed; one pair alone cannot be told from noise.

    Args:
        a: [seeds].
        b: [seeds].
    """
    if len(a) < 2:
        return Difference(float(np.mean(a) - np.mean(b)), -np.inf, np.inf)
    found = compare(a, b)
    return Difference(found.mean, found.mean - found.half, found.mean + found.half)
