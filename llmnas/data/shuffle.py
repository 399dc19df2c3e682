"""A random order that needs no memory: which item comes n-th is computed, not stored."""

from __future__ import annotations

import numpy as np

from llmnas.rng import generator

_ROUNDS = 6


def shuffled(places: np.ndarray, count: int, seed: int, purpose: str, *steps: int) -> np.ndarray:
    """Items at `places` of a pseudo-random permutation of 0 .. count - 1.

    A Feistel network over the next even number of bits (Luby and Rackoff 1988), walked until it lands below `count`
    (cycle walking, Black and Rogaway 2002): a permutation for any keys, so that an order of 10^9 items costs nothing
    to hold. The keys are those of `generator(seed, purpose, *steps)`.

    Args:
        places: `[n]` integers in 0 .. count - 1.
        count: how many items there are.
        seed, purpose, steps: which permutation.

    Returns:
        `[n]` int64.
    """
    keys = generator(seed, purpose, *steps).integers(1 << 63, size=_ROUNDS, dtype=np.uint64)
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    found = _network(places.astype(np.uint64), keys, half)
    while (outside := found >= count).any():
        found[outside] = _network(found[outside], keys, half)
    return found.astype(np.int64)


def _network(values: np.ndarray, keys: np.ndarray, half: np.uint64) -> np.ndarray:
    """`values` `[n]` uint64 of twice `half` bits, permuted."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << half) | right


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele et al. 2014): every output bit depends on every input bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
