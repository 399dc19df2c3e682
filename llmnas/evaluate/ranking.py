"""What a ranking is worth to a search: the regret of its top k, and its agreement among networks of one size.

Over a wide range of sizes the parameter count alone ranks well, which says nothing about a supernet. So tau is
also taken within bands of parameters, and over the pairs whose sizes differ by little.
"""

from __future__ import annotations

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
    order = np.argsort(predicted, kind="stable")
    ranked = actual[order]
    counts = _resamples(len(actual), generator(seed, "regret"))[:, order]
    # copies of a network take places among the k best too
    taken = (counts > 0) & (np.cumsum(counts, axis=1) - counts < k)
    best = np.where(taken, ranked, np.inf).min(1)
    return _interval(best - np.where(counts > 0, ranked, np.inf).min(1))


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


def tau_within(
    predicted: np.ndarray, actual: np.ndarray, size: np.ndarray, width: float, seed: int = 0
) -> tuple[Interval, int]:
    """Kendall's tau over the pairs whose sizes differ by at most `width` (relative to the smaller), and their number.

    (concordant - discordant) / pairs; ties count as neither. The interval resamples networks. NaN without pairs.

    Args:
        predicted, actual, size: [K].
    """
    close = np.abs(size[:, None] - size) <= width * np.minimum(size[:, None], size)
    np.fill_diagonal(close, False)  # two copies of one network are no pair
    order = _signs(predicted) * _signs(actual) * close
    counts = _resamples(len(actual), generator(seed, "tau within"))
    with np.errstate(invalid="ignore"):
        taus = _pair_sums(counts, order) / _pair_sums(counts, close)
    return _interval(taus), int(close.sum()) // 2


def _tau_b(predicted: np.ndarray, actual: np.ndarray, rng: np.random.Generator) -> Interval:
    """Kendall 1945: sum of sign products over the root of the product of the numbers of untied pairs."""
    p, a = _signs(predicted), _signs(actual)
    counts = _resamples(len(actual), rng)
    untied = _pair_sums(counts, np.abs(p)) * _pair_sums(counts, np.abs(a))
    with np.errstate(invalid="ignore"):
        return _interval(_pair_sums(counts, p * a) / np.sqrt(untied))


def _signs(score: np.ndarray) -> np.ndarray:
    """[K] -> [K, K]: 1 where the first is greater, -1 where the second is, 0 where they are equal."""
    return np.asarray(np.sign(score[:, None] - score))


def _resamples(count: int, rng: np.random.Generator) -> np.ndarray:
    """How often each network is in each sample, [1 + resamples, K]; the first is the original."""
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    return np.vstack([np.ones(count, dtype=drawn.dtype), drawn]).astype(float)


def _pair_sums(counts: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Sum over ordered pairs i, j of counts_i counts_j pairs_ij, for every sample: [samples]."""
    return np.asarray(np.einsum("si,si->s", counts @ pairs, counts))


def _interval(values: np.ndarray) -> Interval:
    """The first value, with the percentile interval of the others that exist."""
    draws = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(draws, [2.5, 97.5]) if len(draws) else (-np.inf, np.inf)
    return Interval(float(values[0]), float(low), float(high))
