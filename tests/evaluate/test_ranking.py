"""Regret and tau within a size, recomputed by brute force."""

import itertools

import numpy as np
import pytest
from scipy import stats

from llmnas.evaluate.ranking import banded_agreement, tau_within, top_k_regret


def data(count=24, seed=0):
    rng = np.random.default_rng(seed)
    actual = rng.normal(size=count)
    return actual + rng.normal(scale=0.7, size=count), actual, rng.uniform(1e6, 2e6, count)


@pytest.mark.parametrize("k", [1, 3, 24])
def test_regret_is_what_the_best_k_lose(k):
    predicted, actual, _ = data()
    best = sorted(range(24), key=lambda i: predicted[i])[:k]
    found = top_k_regret(predicted, actual, k)
    assert found.value == pytest.approx(min(actual[i] for i in best) - min(actual))
    assert found.low <= found.value + 1e-12
    assert 0 <= found.low <= found.high


def test_regret_vanishes_for_a_perfect_score_and_when_all_are_trained():
    _, actual, _ = data()
    assert top_k_regret(actual, actual, 1) == (0.0, 0.0, 0.0)
    assert top_k_regret(-actual, actual, 24) == (0.0, 0.0, 0.0)
    assert top_k_regret(-actual, actual, 1).value == pytest.approx(actual.max() - actual.min())


@pytest.mark.parametrize("k", [0, 25])
def test_regret_of_no_or_too_many_is_refused(k):
    with pytest.raises(ValueError, match="between 1 and 24"):
        top_k_regret(*data()[:2], k)


def test_bands_split_by_size_and_agree_with_the_parts():
    predicted, actual, size = data()
    found = banded_agreement(predicted, actual, size, 3)
    assert [band.networks for band in found] == [8, 8, 8]
    edges = [(band.low, band.high) for band in found]
    assert edges == sorted(edges)
    for band in found:
        inside = (size >= band.low) & (size <= band.high)
        assert band.tau.value == pytest.approx(stats.kendalltau(predicted[inside], actual[inside]).statistic)
        assert band.tau.low <= band.tau.value <= band.tau.high


def test_ties_count_as_in_tau_b():
    actual, size = np.arange(12.0), np.ones(12)
    predicted = np.array([0, 0, 1, 1, 1, 4, 3, 3, 6, 9, 8, 8.0])
    (band,) = banded_agreement(predicted, actual, size, 1)
    assert band.tau.value == pytest.approx(stats.kendalltau(predicted, actual).statistic)
    assert banded_agreement(np.zeros(12), actual, size, 1) == []


def test_tau_within_counts_near_pairs_only():
    predicted, actual, size = data()
    width = 0.1
    score = pairs = 0
    for i, j in itertools.combinations(range(24), 2):
        if max(size[i], size[j]) <= (1 + width) * min(size[i], size[j]):
            pairs += 1
            score += np.sign(predicted[i] - predicted[j]) * np.sign(actual[i] - actual[j])
    found, counted = tau_within(predicted, actual, size, width)
    assert counted == pairs
    assert found.value == pytest.approx(score / pairs)
    assert found.low <= found.value <= found.high
    everything, _ = tau_within(predicted, actual, size, np.inf)
    assert everything.value == pytest.approx(stats.kendalltau(predicted, actual).statistic)


def test_parameters_that_rank_well_overall_say_nothing_within_a_size():
    """Three sizes; the loss falls with size, and within a size depends on something else."""
    rng = np.random.default_rng(1)
    size = np.repeat([1e6, 2e6, 4e6], 12) * rng.uniform(0.99, 1.01, 36)
    inside = rng.normal(scale=0.05, size=36)
    actual = 10 - np.log(size) + inside
    assert stats.kendalltau(-size, actual).statistic > 0.6
    near, _ = tau_within(-size, actual, size, 0.05)
    assert near.low < 0.0 < near.high
    knowing, _ = tau_within(inside, actual, size, 0.05)
    assert knowing.low > 0.6


def test_no_near_pair_has_no_tau():
    value, pairs = tau_within(np.arange(3.0), np.arange(3.0), np.array([1.0, 10.0, 100.0]), 0.1)
    assert pairs == 0
    assert np.isnan(value.value)
