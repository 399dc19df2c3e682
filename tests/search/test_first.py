"""Architectures that a search is given are evaluated first, never twice, and its strategy learns of them."""

import pytest
from toy_problem import BUDGET, LIGHT, SPACE, measure

from llmnas.archive import Archive
from llmnas.cost import sample
from llmnas.errors import UserError
from llmnas.rng import generator
from llmnas.search import search, start_strategy
from llmnas.search.strategy import Problem

FIRST = [sample(SPACE, generator(seed, "first"), BUDGET) for seed in range(5)]


@pytest.mark.parametrize("name", ["random", "evolution", "nsga2", "local", "reinforce", "mip"])
def test_they_come_first_and_the_strategy_goes_on(name, tmp_path):
    path, options, asked = tmp_path / "a.sqlite", LIGHT.get(name, {}), []

    def evaluate(archs):
        asked.extend(archs)
        return measure(archs)

    for evaluations in (len(FIRST), 30):  # given ones alone, then the search
        arguments = {"budget": BUDGET, "evaluations": evaluations, "batch": 4, "first": FIRST, "options": options}
        search(SPACE, evaluate, name, archive_path=path, **arguments).close()
    stored = [e.arch for e in Archive.load(path).evaluations]
    assert stored == asked
    assert stored[: len(FIRST)] == FIRST
    assert len(set(stored)) == 30
    alone = search(SPACE, measure, name, budget=BUDGET, evaluations=20, batch=4, options=options)
    assert alone.evaluations[0].arch in stored[len(FIRST) :]


@pytest.mark.parametrize("name", ["random", "evolution", "nsga2", "local", "bayes", "ofa"])
def test_a_strategy_begins_with_them(name):
    problem = Problem.of(SPACE, {"val_loss": "min", "params": "min"}, {}, BUDGET, 0, FIRST)
    _, strategy = start_strategy(name, LIGHT.get(name, {}), problem)
    assert set(FIRST) <= set(strategy.ask(12))


def test_they_belong_to_the_search(tmp_path):
    path = tmp_path / "a.sqlite"
    search(SPACE, measure, "random", budget=BUDGET, evaluations=6, first=FIRST, archive_path=path).close()
    with pytest.raises(UserError, match="belongs to another search"):
        search(SPACE, measure, "random", budget=BUDGET, evaluations=6, first=FIRST[:4], archive_path=path)


def test_those_outside_of_the_space_or_budget_are_refused():
    with pytest.raises(UserError, match="not in the search space and budget"):
        search(SPACE, measure, "random", budget=BUDGET, first=[SPACE.largest()])
