"""What a ranking is worth to a search: the regret of its top k, and its agreement among networks of one size.

Over a wide range of sizes the parameter count alone ranks well, which says nothing about a supernet. So tau is
also taken within bands of parameters, and over the pairs whose sizes differ by little.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

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
        networks: how many are in it.
        tau: Kendall's tau-b.
    """

    low: float
    high: float
    networks: int
    tau: Interval


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

    return _bootstrapped(regret, len(actual), generator(seed, "regret"))


def banded_agreement(predicted: np.ndarray, actual: np.ndarray, size: np.ndarray, bands: int) -> list[Band]:
    """Agreement within each of `bands` equally populated ranges of `size` [K], small to large.

    A band in which a score does not vary has no tau and is left out.
    """
    parts = np.array_split(np.argsort(size, kind="stable"), bands)
    found = []
    for number, part in enumerate(parts):
        tau = _tau_b(predicted[part], actual[part], generator(0, "band", number))
        if np.isfinite(tau.value):
            found.append(Band(float(size[part].min()), float(size[part].max()), len(part), tau))
    return found


def _signs(score: np.ndarray) -> np.ndarray:
    """[K] -> [K, K]: 1 where the first is greater, -1 where the second is, 0 where they are equal."""
    return np.asarray(np.sign(score[:, None] - score))


def _tau_b(predicted: np.ndarray, actual: np.ndarray, rng: np.random.Generator) -> Interval:
    """Kendall 1945: sum of sign products over the root of the product of the numbers of untied pairs."""
    p, a = _signs(predicted), _signs(actual)

    def tau(chosen: np.ndarray) -> float:
        rows = np.ix_(chosen, chosen)
        untied = float(np.abs(p[rows]).sum() * np.abs(a[rows]).sum()) ** 0.5
        return float((p[rows] * a[rows]).sum()) / untied if untied else float("nan")

    return _bootstrapped(tau, len(actual), rng)


def _bootstrapped(statistic: Callable[[np.ndarray], float], count: int, rng: np.random.Generator) -> Interval:
    """The statistic of all, with the percentile interval over resamples in which it exists."""
    draws = np.array([statistic(rng.integers(count, size=count)) for _ in range(_RESAMPLES)])
    draws = draws[np.isfinite(draws)]
    low, high = np.percentile(draws, [2.5, 97.5]) if len(draws) else (-np.inf, np.inf)
    return Interval(statistic(np.arange(count)), float(low), float(high))


def tau_within(
    predicted: np.ndarray, actual: np.ndarray, size: np.ndarray, width: float, seed: int = 0
) -> tuple[Interval, int]:
    """Kendall's tau over the pairs whose sizes differ by at most `width` (relative to the smaller), and their number.

    (concordant - discordant) / pairs; ties count as neither. The interval resamples networks. NaN without pairs.

    Args:
        predicted, actual, size: [K].
    """
    close = np.abs(size[:, None] - size) <= width * np.minimum(size[:, None], size)
    order = _signs(predicted) * _signs(actual)

    def tau(chosen: np.ndarray) -> float:
        # two copies of one network are no pair
        apart = close[np.ix_(chosen, chosen)] & (chosen[:, None] != chosen)
        pairs = int(apart.sum())
        return float((order[np.ix_(chosen, chosen)] * apart).sum() / pairs) if pairs else float("nan")

    pairs = (int(close.sum()) - len(actual)) // 2
    return _bootstrapped(tau, len(actual), generator(seed, "tau within")), pairs
