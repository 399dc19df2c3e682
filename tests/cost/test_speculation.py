"""The arithmetic of speculative decoding against a simulation of it, and against the formula of the paper."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmnas.cost.speculation import plan, rounds


def simulate(text, length):
    """Token by token, as a decoder does it: the draft's proposals, the check, the full network's own token."""
    place = count = proposed = accepted = 0
    while place < len(text):
        count += 1
        tried = min(length, len(text) - place - 1)
        proposed += tried
        for _ in range(tried):
            if not text[place]:
                break
            accepted += 1
            place += 1
        place += 1
    return count, proposed, accepted


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=40), min_size=1, max_size=4), st.integers(1, 8))
def test_rounds_are_those_of_a_simulation(texts, length):
    found = rounds([np.array(text) for text in texts], length)
    expected = np.sum([simulate(text, length) for text in texts], axis=0)
    assert found[:3] == tuple(expected)
    assert found.tokens == sum(map(len, texts)) == found.rounds + found.accepted


@pytest.mark.parametrize("acceptance", [0.3, 0.8, 1.0])
def test_independent_acceptance_gives_the_formula(acceptance):
    """Leviathan et al. 2023, eq. 1: sum of acceptance^i for i = 0 .. length."""
    text = np.random.default_rng(0).random(200_000) < acceptance
    for length in (1, 4):
        found = rounds([text], length)
        expected = sum(acceptance**i for i in range(length + 1))
        assert found.tokens / found.rounds == pytest.approx(expected, rel=0.01)


def test_a_perfect_free_draft_gains_its_proposals_and_a_wrong_one_costs():
    right, wrong = np.ones(90, dtype=bool), np.zeros(90, dtype=bool)
    best = plan([right], 0.0, [1.0] * 9)
    assert (best.length, best.speedup, best.acceptance) == (8, pytest.approx(9.0), 1.0)
    worst = plan([wrong], 0.5, [1.0] * 9)
    assert worst.length == 1  # the least harm
    assert worst.speedup == pytest.approx(90 / (90 + 89 * 0.5))
    assert plan([right], 0.1, [1.0, 1.2, 3.0]).length == 1  # checking three tokens is dear
