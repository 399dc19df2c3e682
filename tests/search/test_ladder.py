"""The depth ladder: exact where it is exhaustive, near the optimum and within its budget where it is not."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmnas.search.ladder import depth_ladder


class Table:
    """Losses of subsets: what each layer is worth, and what pairs of layers are worth together."""

    def __init__(self, layers, seed, interaction=0.5):
        rng = np.random.default_rng(seed)
        self.alone = rng.random(layers)
        self.pairs = interaction * rng.normal(size=(layers, layers))
        self.asked = []

    def __call__(self, subsets):
        self.asked += subsets
        return [self.loss(subset) for subset in subsets]

    def loss(self, subset):
        kept = list(subset)
        return float(-self.alone[kept].sum() - self.pairs[np.ix_(kept, kept)].sum() / len(self.alone))


def anything(_):
    return True


@given(st.integers(1, 7), st.integers(0, 20))
def test_a_small_ladder_is_the_optimum_of_every_depth(layers, seed):
    table = Table(layers, seed)
    rungs = depth_ladder(layers, range(1, layers + 1), table, allowed=anything, limit=100)
    assert len(table.asked) == len(set(table.asked)) == 2**layers - 1
    for depth, rung in rungs.items():
        assert rung.exhaustive
        assert rung.kept == min(combinations(range(layers), depth), key=lambda s: (table.loss(s), s))
        assert rung.loss == table.loss(rung.kept)


@pytest.mark.parametrize("seed", range(5))
def test_a_deep_ladder_comes_near_the_optimum_with_a_part_of_the_measurements(seed):
    table = Table(12, seed)
    rungs = depth_ladder(12, [3, 6, 9], table, allowed=anything, limit=150)
    assert sorted(rungs) == [3, 6, 9]
    assert max(sum(len(subset) == depth for subset in table.asked) for depth in range(1, 13)) <= 150
    assert len(table.asked) == len(set(table.asked))
    assert not rungs[6].exhaustive
    for depth, rung in rungs.items():
        losses = sorted(table.loss(subset) for subset in combinations(range(12), depth))
        assert rung.loss <= losses[len(losses) // 100]


def test_only_allowed_subsets_are_measured():
    table = Table(8, 0)
    ends = lambda kept: {0, 7} <= set(kept)  # noqa: E731
    rungs = depth_ladder(8, [2, 4], table, allowed=ends, limit=30)
    assert all(ends(subset) for subset in table.asked)
    assert rungs[2].kept == (0, 7)


@pytest.mark.parametrize(
    ("depths", "allowed", "message"),
    [([0, 2], anything, "must lie in 1..4"), ([5], anything, "must lie in 1..4"),
     ([1], lambda kept: len(kept) > 1, "no subset of 1 layers")],
)  # fmt: skip
def test_ladders_that_cannot_be_are_refused(depths, allowed, message):
    with pytest.raises(ValueError, match=message):
        depth_ladder(4, depths, Table(4, 0), allowed=allowed, limit=50)
