"""Intervals against scipy, and how often a race is wrong, by simulation."""

import numpy as np
import pytest
from scipy import stats

from llmnas.evaluate.compare import Comparison, compare, looks_at, race

ALPHA = 0.05


def test_interval_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    hard = rng.normal(4, 1, 40)
    a, b = hard + rng.normal(0, 0.05, 40), hard + rng.normal(0.02, 0.05, 40)
    found, expected = compare(a, b, ALPHA), stats.ttest_rel(a, b).confidence_interval(1 - ALPHA)
    assert found.mean - found.half == pytest.approx(expected.low)
    assert found.mean + found.half == pytest.approx(expected.high)
    # in another order, the same losses say little
    assert found.half < 0.1 * compare(a, rng.permutation(b), ALPHA).half


@pytest.mark.parametrize("pair", [(np.ones(1), np.ones(1)), (np.ones(3), np.ones(4)), (np.ones((2, 2)),) * 2])
def test_what_is_not_paired_is_refused(pair):
    with pytest.raises(ValueError, match="two or more windows"):
        compare(*pair)


def test_sentences():
    names = ["A", "B"]
    assert Comparison(0, 1, -0.02, 0.005, 9).sentence(names) == "A beats B by 0.0200 ± 0.0050 nats"
    assert Comparison(0, 1, 0.02, 0.005, 9).sentence(names) == "B beats A by 0.0200 ± 0.0050 nats"
    equal = Comparison(0, 1, 0.001, 0.005, 9)
    assert equal.sentence(names, 1) == "A and B are indistinguishable (+0.0010 ± 0.0050 nats): the cheaper one, B"
    assert equal.within(0.006)
    assert not equal.within(0.005)


def test_looks_double_until_all():
    assert looks_at(100, 16) == [16, 32, 64, 100]
    assert looks_at(64, 16) == [16, 32, 64]
    assert looks_at(10, 16) == [10]


def simulated(means, windows, seed, spread=0.05):
    """Candidates that share what is hard about a window, with tails heavier than normal ones."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(4, 0.5, windows)
    own = spread * rng.standard_t(5, (len(means), windows))
    return hard + np.asarray(means)[:, None] + own


def run(table, costs=None, **options):
    order = np.arange(table.shape[1])
    return race(lambda i, places: table[i, places], costs or [0.0] * len(table), order, **options)


def wrong_intervals(result, means):
    truth = {c: means[c.a] - means[c.b] for c in result.comparisons}
    return any(abs(c.mean - truth[c]) > c.half for c in result.comparisons)


def test_false_decisions_stay_below_alpha_although_there_are_many_looks():
    means, races = [0.0, 0.0, 0.0], 200
    dropped = intervals = naive = 0
    for seed in range(races):
        table = simulated(means, 256, seed)
        result = run(table, first=8, alpha=ALPHA)
        dropped += len(result.left) < 3
        intervals += wrong_intervals(result, means)
        # what one would do without the theory: every look and pair at alpha
        naive += any(
            compare(table[i, :n], table[j, :n], ALPHA).clear
            for n in looks_at(256, 8)
            for i in range(3)
            for j in range(i)
        )
    limit = stats.binom.ppf(0.999, races, ALPHA)
    assert dropped <= limit
    assert intervals <= limit
    assert naive > 2 * limit  # this test can fail


def test_the_best_is_kept_and_a_clear_case_ends_early():
    means, races = [0.0, 0.005, 0.2, 0.3], 100
    lost = 0
    for seed in range(races):
        result = run(simulated(means, 256, seed), alpha=ALPHA)
        lost += 0 not in result.left
        assert result.windows[2] <= 32
        assert result.windows[3] <= 32
    assert lost <= stats.binom.ppf(0.999, races, ALPHA)


def test_a_decided_race_stops_and_names_the_winner():
    result = run(simulated([0.3, 0.0], 1024, 1), costs=[1.0, 9.0])
    assert (result.winner, result.left, result.reason) == (1, (1,), "decided")
    assert result.windows[0] == result.windows[1] < 1024
    (only,) = result.comparisons
    assert (only.a, only.b) == (1, 0)
    assert only.clear
    assert only.mean < 0


def test_equals_go_to_the_cheapest():
    table = simulated([0.0, 0.0, 0.5], 64, 3)
    result = run(table, costs=[5.0, 4.0, 1.0])
    assert (result.winner, result.left, result.reason) == (1, (0, 1), "exhausted")
    assert result.windows[:2] == (64, 64)


def test_tolerance_ends_a_race_of_near_equals_early():
    table = simulated([0.0, 0.0004], 4096, 0, spread=0.005)
    patient = run(table, costs=[2.0, 1.0], tolerance=0.003)
    assert (patient.reason, patient.winner) == ("equal", 1)
    assert max(patient.windows) < 4096


def test_losses_are_asked_for_once_each_and_only_of_those_still_in():
    table, seen = simulated([0.0, 0.0, 1.0], 128, 5), {0: [], 1: [], 2: []}

    def losses(i, places):
        seen[i] += places.tolist()
        return table[i, places]

    order = np.random.default_rng(0).permutation(128)
    result = race(losses, [0.0, 0.0, 0.0], order, first=16)
    for i, places in seen.items():
        assert places == order[: result.windows[i]].tolist()
    assert result.windows[2] == 16


def test_one_candidate_needs_no_window():
    result = race(lambda i, places: pytest.fail("no need to look"), [1.0], np.arange(8))
    assert (result.winner, result.reason, result.windows) == (0, "decided", (0,))


@pytest.mark.parametrize(("costs", "windows"), [([], 8), ([1.0, 1.0], 1)])
def test_a_race_without_candidates_or_windows_is_refused(costs, windows):
    with pytest.raises(ValueError, match="a race needs"):
        race(lambda i, places: np.zeros(len(places)), costs, np.arange(windows))
