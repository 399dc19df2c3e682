"""Rank agreement and paired differences against brute force and scipy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from llmnas.evaluate.rank import paired_difference, rank_agreement


def tau_b(x, y):
    """(concordant - discordant) / sqrt((pairs - ties in x)(pairs - ties in y)), pair by pair (Kendall 1945)."""
    agree = pairs_x = pairs_y = 0
    for i in range(len(x)):
        for j in range(i):
            agree += np.sign(x[i] - x[j]) * np.sign(y[i] - y[j])
            pairs_x += x[i] != x[j]
            pairs_y += y[i] != y[j]
    return agree / math.sqrt(pairs_x * pairs_y)


def ranks(x):
    return np.array([(x < v).sum() + ((x == v).sum() + 1) / 2 for v in x])


SCORES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=12).filter(
    lambda pairs: all(len({pair[i] for pair in pairs}) > 1 for i in (0, 1))
)


@given(SCORES)
def test_tau_and_rho_by_their_definitions(pairs):
    x, y = np.array(pairs, dtype=float).T
    found = rank_agreement(x, y, resamples=5)
    assert found.tau == pytest.approx(tau_b(x, y), abs=1e-12)
    assert found.spearman == pytest.approx(np.corrcoef(ranks(x), ranks(y))[0, 1], abs=1e-12)


def test_perfect_and_reversed():
    x = np.arange(9.0)
    assert rank_agreement(x, x**3, resamples=50)[:4] == pytest.approx((1, 1, 1, 1))
    assert rank_agreement(x, -x, resamples=50)[:4] == pytest.approx((-1, -1, -1, -1))


@pytest.mark.parametrize("constant", [0, 1])
def test_a_constant_score_ranks_nothing(constant):
    """As parameter counts do where all networks have the same one: a number that JSON can hold, not NaN."""
    scores = [np.arange(5.0), np.full(5, 3.0)]
    assert rank_agreement(scores[constant], scores[1 - constant], resamples=5) == (0, 0, 0, 0)


def test_the_interval_is_scipys_percentile_bootstrap():
    rng = np.random.default_rng(0)
    x = rng.normal(size=30)
    y = x + rng.normal(size=30)
    found = rank_agreement(x, y, resamples=3000)
    theirs = stats.bootstrap(
        (x, y), lambda a, b: stats.kendalltau(a, b).statistic, paired=True, vectorized=False, n_resamples=3000,
        method="percentile", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert found.low == pytest.approx(theirs.low, abs=0.03)
    assert found.high == pytest.approx(theirs.high, abs=0.03)
    assert found.low < found.tau < found.high


def test_the_same_seed_gives_the_same_interval_whatever_the_global_generator_does():
    x, y = np.random.default_rng(0).normal(size=(2, 10))
    first = rank_agreement(x, y, seed=1, resamples=100)
    np.random.seed(5)
    assert rank_agreement(x, y, seed=1, resamples=100) == first
    assert rank_agreement(x, y, seed=2, resamples=100) != first


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=2, max_size=8))
def test_the_paired_interval_is_scipys(pairs):
    a, b = np.array(pairs).T
    found = paired_difference(a, b)
    assert found.mean == pytest.approx(np.mean(a) - np.mean(b), abs=1e-9)
    if np.ptp(a - b) > 1e-6:
        interval = stats.ttest_rel(a, b).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)


def test_it_covers_the_truth_in_95_of_100():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        seed_effect = rng.normal(scale=5, size=4)  # common to a pair, and therefore without weight
        found = paired_difference(seed_effect + 0.3 + rng.normal(size=4), seed_effect + rng.normal(size=4))
        inside += found.low <= 0.3 <= found.high
    assert abs(inside / 2000 - 0.95) < 0.015  # three standard errors


def test_what_is_clear():
    assert paired_difference(np.array([1.0, 1.1, 0.9]), np.zeros(3)).clear
    assert paired_difference(np.zeros(3), np.array([1.0, 1.1, 0.9])).clear
    assert not paired_difference(np.array([1.0, -1.1, 0.9]), np.zeros(3)).clear


def test_one_pair_says_nothing_about_noise():
    found = paired_difference(np.array([1.0]), np.array([3.0]))
    assert found == (-2.0, -np.inf, np.inf)
    assert not found.clear
