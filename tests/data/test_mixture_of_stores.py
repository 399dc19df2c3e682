"""Sequences from several sources: shares are exact, every sequence is a function of (seed, n)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmnas.data.mixture import PERIOD, Mixture, shares
from llmnas.data.sequences import Sequences
from llmnas.errors import UserError

SEQ = 4


def source(first, count=1000):
    """Tokens that tell which source they are of."""
    return Sequences(np.arange(first, first + count), SEQ, seed=3)


def mixture(weights, seed=5):
    return Mixture([source(10_000 * (i + 1)) for i in range(len(weights))], weights, seed)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(1, 5000))
def test_shares_add_up_and_miss_the_exact_ones_by_less_than_one(weights, total):
    found = shares(weights, total)
    assert found.sum() == total
    assert np.abs(found - np.array(weights) / sum(weights) * total).max() < 1


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.7, 0.2, 0.1)])
def test_every_period_holds_the_share_of_every_source(weights):
    mixed = mixture(weights)
    for period in range(3):
        owners, _ = mixed.sources(period * PERIOD + np.arange(PERIOD))
        assert np.abs(np.bincount(owners) / PERIOD - np.array(weights) / sum(weights)).max() < 1 / PERIOD
    owners, _ = mixed.sources(np.arange(256))  # and a short stretch roughly
    assert np.abs(np.bincount(owners, minlength=len(weights)) / 256 - np.array(weights) / sum(weights)).max() < 0.12


def test_a_source_is_read_in_its_own_sequences_each_once():
    mixed = mixture((3, 1))
    numbers = np.arange(2 * PERIOD)
    owners, places = mixed.sources(numbers)
    for i in range(2):
        assert sorted(places[owners == i]) == list(range(int((owners == i).sum())))
    rows = mixed.batch(0, 40)
    for row, owner, place in zip(rows, owners, places, strict=False):
        assert row.tolist() == mixed.parts[owner].batch(int(place), 1)[0].tolist()


def test_any_batch_is_a_function_of_seed_and_number():
    whole = mixture((2, 1)).batch(0, 64)
    other = mixture((2, 1))
    assert np.array_equal(np.concatenate([other.batch(32, 32), other.batch(0, 32)]), np.roll(whole, 32, axis=0))
    assert not np.array_equal(mixture((2, 1), seed=6).batch(0, 64), whole)


def test_a_weight_too_small_to_be_read_is_refused():
    with pytest.raises(UserError, match="a weight of 1e-05 among 1"):
        mixture((1, 1e-5))


def test_fixed_windows_are_those_of_every_source_by_its_share():
    found = mixture((3, 1)).fixed(40)
    assert found.shape == (40, SEQ + 1)
    assert (found[:, 0] < 20_000).sum() == 30
