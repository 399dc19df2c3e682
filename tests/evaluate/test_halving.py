"""Successive halving against exhaustive evaluation: who goes on, with which numbers, and what was run."""

import math
from contextlib import closing

import numpy as np
import pytest
from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance
from test_evaluator import WINDOWS, WORKLOAD
from test_quality import SPACE

from llmnas.archive import Archive
from llmnas.config import Config
from llmnas.errors import UserError
from llmnas.evaluate.evaluator import Evaluator, Part, spread
from llmnas.evaluate.halving import HALVED, Halving, _crowding, ranked, rungs
from llmnas.pareto import Evaluation, Failed
from llmnas.rng import generator
from llmnas.search import search
from llmnas.supernet import Transformer

LOSS = {"val_loss": "min"}
BOTH = {"val_loss": "min", "params": "min"}


@pytest.fixture(scope="module")
def evaluator():
    return Evaluator(Transformer(SPACE, seed=3), WINDOWS, 32, 3.5, WORKLOAD)


def halving(evaluator, objectives=LOSS, steps=(8, 16, 32), others=lambda archs: [{} for _ in archs]):
    def run(parts):
        return [evaluator.part(part) for part in parts]

    return Halving(run, evaluator.metrics, others, objectives, {}, list(steps), 0.5)


def drawn(count):
    found = dict.fromkeys(SPACE.sample(generator(draw, "halving")) for draw in range(10 * count))
    return list(found)[:count]


@pytest.mark.parametrize("count", [1, 2, 5, 24, 32, 100])
def test_every_beginning_of_the_order_is_spread_over_all(count):
    order = spread(count)
    assert sorted(order) == list(range(count))
    for n in range(1, count + 1):
        inside = np.sort(order[:n])
        assert max(np.diff([0, *inside, count])) <= 4 * math.ceil(count / n)


def test_the_rungs_grow_by_the_share_kept_up_to_all_windows():
    assert rungs(32, 8, 0.5) == [8, 16, 32]
    assert rungs(24, 8, 0.5) == [8, 16, 24]
    assert rungs(100, 3, 1 / 3) == [3, 9, 27, 81, 100]
    assert rungs(6, 8, 0.5) == [6]
    assert rungs(5, 1, 0.99) == [1, 2, 3, 4, 5]


def test_survivors_are_the_best_of_every_rung_with_the_numbers_of_exhaustive_evaluation(evaluator):
    archs = drawn(8)
    full = evaluator(archs)
    assert halving(evaluator, steps=[32])(archs) == full
    tried = halving(evaluator)
    rows = tried(archs)
    alive = list(range(8))
    dropped = {}
    for n, left in ((8, 4), (16, 2)):  # computed again, from losses of the first windows of the order
        losses = [evaluator.metrics(archs[i], evaluator.part(Part(archs[i], 0, n)))["val_loss"] for i in alive]
        best = [alive[k] for k in np.argsort(losses)[:left]]
        dropped |= {i: (n, losses[k]) for k, i in enumerate(alive) if i not in best}
        alive = sorted(best)
    for i, row in enumerate(rows):
        if i in alive:
            assert row == full[i]  # to the last bit
        else:
            assert (row.dropped_after, row.metrics[HALVED]) == dropped[i]
            assert "val_loss" not in row.metrics
            assert row.metrics["params"] == full[i]["params"]
    assert tried.windows == 8 * 8 + 4 * 8 + 2 * 16 == 128  # of 256
    assert tried.dropped == 6


def test_with_two_objectives_what_is_dominated_goes_first_and_the_ends_of_the_front_stay():
    rows = [(5.0, 10), (4.0, 20), (3.0, 30), (4.1, 31), (4.5, 12), (6.0, 60)]
    found = [Evaluation(None, {"val_loss": a, "params": b}, None, i) for i, (a, b) in enumerate(rows)]
    order = ranked(found, BOTH, {})
    assert set(order[:2]) == {0, 2}
    assert set(order[2:4]) == {1, 4}
    assert order[4:] == [3, 5]
    assert ranked(found, BOTH, {"params": 25})[-3:] == [2, 3, 5]  # by how far they miss it


@pytest.mark.parametrize("objectives", [2, 3])
def test_crowding_is_that_of_pymoo_also_where_candidates_measure_the_same(objectives):
    rng = generator(objectives, "crowding")
    for _ in range(20):
        points = rng.integers(0, 6, (9, objectives)).astype(float)  # many are equal in some objective, some in all
        theirs = calc_crowding_distance(points)
        np.testing.assert_allclose(_crowding(points), objectives * theirs, rtol=1e-12)


def test_a_failed_candidate_is_failed_not_dropped(evaluator):
    archs = drawn(4)
    broken = lambda archs: [{"latency_ms": math.nan if i == 2 else 1.0} for i in range(len(archs))]  # noqa: E731
    rows = halving(evaluator, {"val_loss": "min", "latency_ms": "min"}, others=broken)(archs)
    assert isinstance(rows[2], Failed)
    assert rows[2].dropped_after is None
    with closing(Archive(":memory:", LOSS | {"latency_ms": "min"})) as archive:
        found = archive.append(archs, rows)
    assert found[2].failure == "latency_ms is nan"
    assert sum("dropped after" in (e.failure or "") for e in found) == 2


def test_a_search_stores_what_was_dropped_repeats_none_and_has_it_on_no_front(evaluator, tmp_path):
    asked = []

    def counted(measure):
        def evaluate(archs):
            asked.extend(archs)
            return measure(archs)

        return evaluate

    path = tmp_path / "archive.sqlite"
    how = {"halving": {"first": 8}}
    for evaluations in (16, 40):  # the second goes on with the first
        archive = search(
            SPACE, counted(halving(evaluator, BOTH)), "nsga2", BOTH, evaluations=evaluations, archive_path=path,
            evaluation=how,
        )  # fmt: skip
        archive.close()
    assert len(asked) == len(set(asked)) == 40
    dropped = [e for e in archive.evaluations if e.failure]
    assert {e.failure for e in dropped} == {"dropped after 8 windows", "dropped after 16 windows"}
    assert len(dropped) == 30  # 6 of 8 in every batch
    front = archive.front()
    assert front
    assert all(e.metrics == evaluator.measure(e.arch) for e in front)
    with pytest.raises(UserError, match=r"evaluation\.halving.first: 8 -> None"):
        search(SPACE, evaluator, "nsga2", BOTH, evaluations=40, archive_path=path, evaluation={"windows": 32})


def config(**options):
    values = {"name": "toy", "space": SPACE.model_dump(), "train": {"steps": 1, "seq_len": 16}}
    return Config.model_validate({**values, "search": {"halving": {"first": 8}} | options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": 1}, "drops none of the 1 candidates"),
        ({"batch": 4, "halving": {"first": 8, "keep": 0.9}}, "drops none of the 4"),
        ({"objectives": {"params": "min", "memory_bytes": "min"}}, "make val_loss an objective"),
        ({"sample": 8}, "less than the 8 windows"),
        ({"windows": 6}, "less than the 6 windows"),
        ({"halving": {"first": 8, "keep": 1.0}}, "keep"),
        ({"halving": {}}, "first"),
    ],
)
def test_halving_that_makes_no_sense_is_refused(options, words):
    assert config().search.halving.keep == 0.5
    assert Config.model_validate(config().model_dump() | {"search": {}}).search.halving is None
    with pytest.raises(ValueError, match=words):
        config(**options)
