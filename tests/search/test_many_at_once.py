"""Strategies asked for many at once, and what holds then: no worker idle, NSGA-II's survivors, no collapse."""

import numpy as np
import pytest
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting
from toy_problem import EACH, LIGHT, SPACE, TWO, measure

from llmnas.pareto import Evaluation
from llmnas.search import Problem, search, start_strategy

PROBLEM = Problem.of(SPACE, TWO, {}, None, 0)


def answered(archs):
    return [Evaluation(a, row, None, i) for i, (a, row) in enumerate(zip(archs, measure(archs), strict=True))]


@pytest.mark.parametrize("batch", [1, 5, 12, 64])
@pytest.mark.parametrize("name", EACH)
def test_every_strategy_hands_out_as_many_as_it_is_asked_for(name, batch):
    """`mip` begins with a few networks of its own, in a batch that may be smaller."""
    _, strategy = start_strategy(name, LIGHT.get(name, {}), PROBLEM)
    seen, sizes = set(), []
    while sum(sizes) < max(60, 3 * batch):
        asked = strategy.ask(batch)
        assert not seen & set(asked) or name == "reinforce"
        seen |= set(asked)
        sizes.append(len(asked))
        strategy.tell(answered(asked))
    assert sum(size != batch for size in sizes) <= (name == "mip")


def ranks(population):
    points = np.array([[e.metrics["val_loss"], e.metrics["params"]] for e in population])
    return NonDominatedSorting().do(points, return_rank=True)[1]


@pytest.mark.parametrize("batch", [4, 16, 40])
def test_survivors_of_any_generation_are_the_best_of_parents_and_children(batch):
    """Deb et al. 2002, section III.B: whole fronts first, and of the last one only a part."""
    _, strategy = start_strategy("nsga2", {"population": 16}, PROBLEM)
    parents = []
    for _ in range(4):
        children = []
        while len(children) < max(16, batch):
            asked = strategy.ask(batch)
            assert len(asked) == batch
            told = answered(asked)
            children += told
            strategy.tell(told)
        everybody = [*parents, *children]
        survivors = {individual.X[0] for individual in strategy._algorithm.pop}
        assert len(survivors) == 16
        rank = ranks(everybody)
        inside = [r for e, r in zip(everybody, rank, strict=True) if e.arch in survivors]
        outside = [r for e, r in zip(everybody, rank, strict=True) if e.arch not in survivors]
        assert len(inside) == 16
        assert max(inside) <= min(outside, default=max(inside))
        parents = [e for e in everybody if e.arch in survivors]


def test_workers_are_never_without_a_candidate():
    sizes = []

    def noted(archs):
        sizes.append(len(archs))
        return measure(archs)

    search(SPACE, noted, "nsga2", evaluations=256, batch=64)
    assert sizes == [64] * 4


def test_mip_asked_for_a_thousand_solves_for_some_and_hands_out_all(monkeypatch):
    _, strategy = start_strategy("mip", LIGHT["mip"], PROBLEM)
    for _ in range(3):
        strategy.tell(answered(strategy.ask(8)))
    calls, solution = [], strategy._solution
    monkeypatch.setattr(strategy, "_solution", lambda best: calls.append(0) or solution(best))
    asked = strategy.ask(1000)
    assert len(asked) == len(set(asked)) == 1000
    assert len(calls) <= 64
    assert all(SPACE.contains(arch) for arch in asked)
