"""What a ranking is worth to a search: the regret of its top k, and its agreement among networks of one size.

Over a wide range of sizes the parameter count alone ranks well, which says nothing about a supernet. So tau is
also taken within bands of parameters, and over the pairs whose sizes differ by little.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from llmnas.evaluate.rank import Agreement, rank_agreement
from llmnas.rng import generator

_RESAMPLES = 2000


class Interval(NamedTuple):
    """A number with its 95 % percentile bootstrap interval."""

    value: float
    low: float
    high: float


class Band(NamedTuple):
    """Agreement among networks of about one size.

    Attributes:
        low, high: least and greatest parameters in the band.
        count: networks in it.
    """

    low: float
    high: float
    count: int
    agreement: Agreement


def top_k_regret(predicted: np.ndarray, actual: np.ndarray, k: int, seed: int = 0) -> Interval:
    """Nats lost by training only the k best by prediction: their best actual loss less the best of all.

    The interval resamples networks with replacement.

    Args:
        predicted, actual: [K] scores where less is better.
        k: at most K.

    Raises:
        ValueError: k is not between 1 and K.
    """
    if not 1 <= k <= len(actual):
        raise ValueError(f"k must be between 1 and {len(actual)}, got {k}")

    def regret(chosen: np.ndarray) -> float:
        p, a = predicted[chosen], actual[chosen]
        return float(a[np.argsort(p, kind="stable")[:k]].min() - a.min())

    rng = generator(seed, "regret")
    draws = [regret(rng.integers(len(actual), size=len(actual))) for _ in range(_RESAMPLES)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(regret(np.arange(len(actual))), float(low), float(high))


def banded_agreement(predicted: np.ndarray, actual: np.ndarray, size: np.ndarray, bands: int) -> list[Band]:
    """Agreement within each of `bands` equally populated ranges of `size` [K], small to large."""
    parts = np.array_split(np.argsort(size, kind="stable"), bands)
    return [
        Band(float(size[part].min()), float(size[part].max()), len(part), rank_agreement(predicted[part], actual[part]))
        for part in parts
        if len(part) > 1
    ]


def tau_within(
    predicted: np.ndarray, actual: np.ndarray, size: np.ndarray, width: float, seed: int = 0
) -> tuple[Interval, int]:
    """Kendall's tau over the pairs whose sizes differ by at most `width` (relative to the smaller), and their number.

    (concordant - discordant) / pairs; ties count as neither. The interval resamples networks. NaN without pairs.

    Args:
        predicted, actual, size: [K].
    """
    close = np.abs(size[:, None] - size) <= width * np.minimum(size[:, None], size)
    order = np.sign(predicted[:, None] - predicted) * np.sign(actual[:, None] - actual)

    def tau(chosen: np.ndarray) -> float:
        # two copies of one network are no pair
        apart = close[np.ix_(chosen, chosen)] & (chosen[:, None] != chosen)
        pairs = int(apart.sum())
        return float((order[np.ix_(chosen, chosen)] * apart).sum() / pairs) if pairs else float("nan")

    rng = generator(seed, "tau within")
    draws = np.array([tau(rng.integers(len(actual), size=len(actual))) for _ in range(_RESAMPLES)])
    draws = draws[np.isfinite(draws)]
    low, high = np.percentile(draws, [2.5, 97.5]) if len(draws) else (-1.0, 1.0)
    everyone = np.arange(len(actual))
    pairs = int((close & (everyone[:, None] != everyone)).sum()) // 2
    return Interval(tau(everyone), float(low), float(high)), pairs
