"""An order without memory: a permutation for every size and key, any part of it alone, no place favoured."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from llmnas.data.shuffle import shuffled


@given(st.integers(1, 3000), st.integers(0, 1000), st.integers(0, 3))
def test_it_is_a_permutation(count, seed, epoch):
    found = shuffled(np.arange(count), count, seed, "order", epoch)
    assert np.array_equal(np.sort(found), np.arange(count))
    some = np.array([count - 1, 0, count // 2])
    assert np.array_equal(shuffled(some, count, seed, "order", epoch), found[some])


def test_a_great_order_needs_no_memory():
    places = np.arange(10**12, 10**12 + 1000)
    found = shuffled(places, 2 * 10**12, 0, "order")
    assert len(set(found.tolist())) == 1000
    assert found.min() >= 0
    assert found.max() < 2 * 10**12
    assert found.std() > 10**11


def test_every_item_comes_first_equally_often_and_follows_every_other():
    orders = np.array([shuffled(np.arange(5), 5, seed, "order") for seed in range(4000)])
    for place in range(5):
        assert chisquare(np.bincount(orders[:, place], minlength=5)).pvalue > 1e-4
    pairs = np.bincount(orders[:, 0] * 5 + orders[:, 1], minlength=25)
    assert chisquare(pairs[pairs > 0]).pvalue > 1e-4
    assert (pairs > 0).sum() == 20
