import random
from collections.abc import Sequence

import numpy as np
import pytest
from toy_problem import BUDGET, LIGHT, ONE, REFERENCE, SPACE, TWO, distance, measure, members, params, val_loss

from llmnas.cost import Budget
from llmnas.errors import UserError
from llmnas.pareto import Evaluation
from llmnas.search import STRATEGIES, Problem, Strategy, load_strategy, search
from llmnas.space import Architecture, SearchSpace

ALL = tuple(STRATEGIES)
LEARNING = tuple(name for name in STRATEGIES if name != "random")
# Strategies that fit models cost seconds a hundred evaluations: they get by with fewer, random search beside them too.
MODELS = {"bayes", "ofa", "mip"}
SLOW = {*MODELS, "reinforce"}
EARLY = {"ofa": {"samples": 24}}
# MnasNet learns one trade-off over hundreds of rewards; test_reinforce.py has what it does reach.
QUICK = tuple(name for name in LEARNING if name != "reinforce")
FIXED_DEPTH = SPACE.model_copy(update={"depth": SPACE.depth.model_copy(update={"choices": (4,)})})


def make(name: str, space: SearchSpace = SPACE, budget: Budget | None = None, objectives=ONE, **options) -> Strategy:
    kind, constructor = load_strategy(name)
    return constructor(Problem(space, objectives, {}, budget, 0), kind(**options))


def size(name: str, evaluations: int, fewer: int) -> int:
    return fewer if name in SLOW else evaluations


def told(archs: Sequence[Architecture], losses: Sequence[float]) -> list[Evaluation]:
    return [Evaluation(arch, {"val_loss": loss}) for arch, loss in zip(archs, losses, strict=True)]


@pytest.mark.parametrize("objectives", [ONE, TWO], ids=["one", "two"])
@pytest.mark.parametrize("budget", [None, BUDGET], ids=["free", "budget"])
@pytest.mark.parametrize("name", ALL)
def test_evaluates_distinct_members_within_the_budget(name, budget, objectives):
    count = size(name, 100, 40)
    archive = search(SPACE, measure, name, objectives, budget, evaluations=count, seed=1, options=LIGHT.get(name, {}))
    archs = [e.arch for e in archive.evaluations]
    assert len(set(archs)) == len(archs) == count
    assert all(SPACE.contains(arch) for arch in archs)
    assert budget is None or all(budget.admits(SPACE.base, arch) for arch in archs)


@pytest.mark.parametrize("name", ALL)
def test_same_seed_same_search_whatever_the_global_generators_do(name):
    def run(seed: int, disturbance: int) -> list[Evaluation]:
        random.seed(disturbance)
        np.random.seed(disturbance)

        def evaluate(archs: Sequence[Architecture]) -> list[dict[str, float]]:
            random.seed(random.random() + disturbance)
            np.random.rand(disturbance)
            return measure(archs)

        options = LIGHT.get(name, {})
        archive = search(SPACE, evaluate, name, TWO, BUDGET, evaluations=40, seed=seed, options=options)
        return list(archive.evaluations)

    assert run(4, 1) == run(4, 2)
    assert run(4, 1) != run(5, 1)


@pytest.fixture(scope="module")
def optimum() -> float:
    return min(val_loss(arch) for arch in members(SPACE) if BUDGET.admits(SPACE.base, arch))


def regrets(name: str, optimum: float, evaluations: int, seeds: int) -> np.ndarray:
    """Best loss above the optimum, one a seed."""
    asked = {"evaluations": evaluations, "options": EARLY.get(name, {})}
    runs = (search(SPACE, measure, name, ONE, BUDGET, seed=seed, **asked) for seed in range(seeds))
    return np.array([run.front()[0].metrics["val_loss"] for run in runs]) - optimum


@pytest.mark.parametrize("name", QUICK)
def test_comes_nearer_to_the_optimum_than_random(name, optimum):
    effort = (56, 4) if name in MODELS else (150, 12)
    ours, baseline = regrets(name, optimum, *effort), regrets("random", optimum, *effort)
    assert ours.mean() < 0.5 * baseline.mean()
    assert (ours <= baseline).mean() >= 0.75


@pytest.mark.parametrize("name", QUICK)
def test_finds_a_greater_hypervolume_than_random(name):
    evaluations, seeds = (56, 2) if name in MODELS else (150, 10)

    def volumes(strategy: str) -> np.ndarray:
        asked = {"evaluations": evaluations, "options": EARLY.get(strategy, {})}
        runs = (search(SPACE, measure, strategy, TWO, seed=seed, **asked) for seed in range(seeds))
        return np.array([run.hypervolume(REFERENCE) for run in runs])

    ours, baseline = volumes(name), volumes("random")
    assert ours.mean() > baseline.mean()
    assert (ours > baseline).mean() >= 0.7


def test_maximising_is_minimising_the_negative():
    def negated(archs: Sequence[Architecture]) -> list[dict[str, float]]:
        return [{"val_loss": -m["val_loss"], "params": m["params"]} for m in measure(archs)]

    for name in ALL:
        asked = {"evaluations": 40, "options": LIGHT.get(name, {})}
        least = search(SPACE, measure, name, {"params": "min", "val_loss": "min"}, **asked)
        most = search(SPACE, negated, name, {"params": "min", "val_loss": "max"}, **asked)
        assert [e.arch for e in least.evaluations] == [e.arch for e in most.evaluations]
        assert [e.arch for e in least.front()] == [e.arch for e in most.front()]


def test_evolution_forgets_the_oldest_even_when_it_is_the_best():
    strategy = make("evolution", FIXED_DEPTH, population=4, tournament=4)
    first = strategy.ask(4)
    strategy.tell(told(first, [0.0, 1.0, 2.0, 3.0]))  # the tournament is the whole population: the winner is known
    children = strategy.ask(3)
    assert all(distance(child, first[0]) == 1 for child in children)
    strategy.tell(told(children[:1], [9.0]))  # the best is the oldest: it dies
    assert all(distance(child, first[1]) == 1 for child in strategy.ask(3))


def test_evolution_never_breeds_from_a_failure():
    strategy = make("evolution", FIXED_DEPTH, population=3, tournament=3)
    first = strategy.ask(3)
    strategy.tell([*told(first[:1], [7.0]), *(Evaluation(arch, {}, "val_loss is nan") for arch in first[1:])])
    assert all(distance(child, first[0]) == 1 for child in strategy.ask(4))


def test_local_stays_within_two_mutations_of_the_front():
    strategy = make("local", FIXED_DEPTH, start=6)
    first = strategy.ask(6)
    strategy.tell(told(first, [5.0, 4.0, 1.0, 3.0, 1.0, 2.0]))
    steps = [min(distance(child, first[2]), distance(child, first[4])) for child in strategy.ask(20)]
    assert set(steps) == {1, 2}


def test_local_starts_from_what_misses_the_constraints_least():
    kind, constructor = load_strategy("local")
    strategy = constructor(Problem(FIXED_DEPTH, ONE, {"val_loss": 1.0}, None, 0), kind(start=3))
    first = strategy.ask(3)
    strategy.tell(told(first, [4.0, 2.0, 3.0]))
    assert all(1 <= distance(child, first[1]) <= 2 for child in strategy.ask(6))


def test_nsga2_begins_with_the_extremes_and_the_middle_within_the_budget():
    assert make("nsga2").ask(3) == [SPACE.smallest(), SPACE.largest(), SPACE.middle()]
    assert not BUDGET.admits(SPACE.base, SPACE.largest())
    generation = make("nsga2", budget=BUDGET, population=8).ask(8)
    assert SPACE.smallest() in generation
    assert SPACE.largest() not in generation


def test_nsga2_takes_a_generation_in_parts():
    def run(part: int) -> list[Architecture]:
        strategy = make("nsga2", population=6)
        asked: list[Architecture] = []
        while len(asked) < 30:
            archs = strategy.ask(part)
            asked += archs
            strategy.tell(told(archs, [val_loss(arch) for arch in archs]))
        return asked[:30]

    assert run(1) == run(2) == run(3) == run(6)  # parts that fill a generation; others: test_many_at_once


def test_nsga2_drops_failures_and_violations_first():
    limit = 40_000.0
    kind, constructor = load_strategy("nsga2")
    strategy = constructor(Problem(SPACE, ONE, {"params": limit}, None, 0), kind(population=8))
    for _ in range(12):
        archs = strategy.ask(8)
        strategy.tell(
            Evaluation(arch, {"val_loss": val_loss(arch), "params": params(arch)})
            if arch.hidden_size != 64
            else Evaluation(arch, {}, "val_loss is nan")
            for arch in archs
        )
    good = [arch for arch in archs if arch.hidden_size != 64 and params(arch) <= limit]
    assert len(good) >= 4


@pytest.mark.parametrize("name", ALL)
def test_constraints_keep_evaluations_off_the_front_but_in_the_archive(name):
    bounds = {"params": (30_000, 50_000)}
    count = size(name, 100, 64)
    archive = search(SPACE, measure, name, TWO, constraints=bounds, evaluations=count, options=LIGHT.get(name, {}))
    inside = [e for e in archive.evaluations if 30_000 <= e.metrics["params"] <= 50_000]
    assert 0 < len(inside) < count
    assert archive.front()
    assert all(e in inside for e in archive.front())


@pytest.mark.parametrize("name", QUICK)
def test_constraints_are_sought(name):
    bounds, evaluations = {"params": (None, 16_000)}, 80 if name in MODELS else 150
    count = {
        strategy: sum(params(e.arch) <= 16_000 for e in run.evaluations)
        for strategy in (name, "random")
        for run in [search(SPACE, measure, strategy, ONE, constraints=bounds, evaluations=evaluations)]
    }
    assert count[name] > 2 * count["random"]


@pytest.mark.parametrize("name", ALL)
def test_a_search_in_which_nothing_is_feasible_goes_on(name):
    limits, options = {"val_loss": 0.0}, LIGHT.get(name, {})
    archive = search(SPACE, measure, name, TWO, constraints=limits, evaluations=40, options=options)
    assert len(archive) == 40
    assert archive.front() == []
    assert archive.hypervolume(REFERENCE) == 0.0


@pytest.mark.parametrize("name", ALL)
def test_failed_evaluations_are_stored_and_the_search_goes_on(name):
    def fragile(archs: Sequence[Architecture]) -> list[dict[str, float]]:
        return [m | {"val_loss": float("nan")} if m["params"] > 50_000 else m for m in measure(archs)]

    archive = search(SPACE, fragile, name, TWO, evaluations=40, options=LIGHT.get(name, {}))
    failed = [e for e in archive.evaluations if e.failure]
    assert failed
    assert all(e.failure == "val_loss is nan" and params(e.arch) > 50_000 for e in failed)
    assert all(e.failure is None for e in archive.front())


@pytest.mark.parametrize("name", ALL)
def test_ends_when_the_space_is_exhausted(name, caplog):
    tiny = SPACE.model_copy(
        update={"hidden_size": (32, 64), "depth": SPACE.depth.model_copy(update={"choices": (3, 4), "policy": "even"})}
    )
    budget = Budget(max_params=18_000 if name == "mip" else 30_000)  # its last programs have a cut for every member
    inside = {arch for arch in members(tiny) if budget.admits(tiny.base, arch)}
    assert 0 < len(inside) < tiny.size()
    batch, options = (64 if name in SLOW else 8), LIGHT.get(name, {})
    archive = search(tiny, measure, name, TWO, budget, evaluations=5000, batch=batch, options=options)
    assert {e.arch for e in archive.evaluations} == inside
    assert f"{len(inside)} of 5000" in caplog.text


@pytest.mark.parametrize("name", ALL)
def test_an_impossible_budget_is_named(name):
    with pytest.raises(UserError, match="max_params"):
        search(SPACE, measure, name, budget=Budget(max_params=10))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("random", {"population": 3}, "random has no 'population'; allowed: none"),
        ("evolution", {"start": 3}, "evolution has no 'start'; allowed: population, tournament"),
        ("nsga2", {"tournament": 3}, "nsga2 has no 'tournament'; allowed: population, crossover"),
        ("evolution", {"population": 8, "tournament": 9}, "a tournament of 9 needs a population of as many, got 8"),
        ("bayes", {"acquisition": "ei"}, "must be log_ehvi or qlognehvi with several objectives, got 'ei'"),
        ("local", {"start": 0}, "options of local: start: .* greater than or equal to 1, got 0"),
        ("ofa", {"predictor": "ensemble", "points": 40}, "points does nothing with predictor ensemble"),
        ("reinforce", {"epochs": 1, "clip": 0.1}, "clip does nothing with one epoch"),
    ],
)
def test_an_option_that_the_strategy_does_not_use_is_an_error(name, options, message):
    with pytest.raises(UserError, match=message):
        search(SPACE, measure, name, options=options)


def test_an_acquisition_without_constraints_is_refused_where_there_are_some():
    asked = {"objectives": ONE, "constraints": {"params": 50_000}, "options": {"acquisition": "ei"}}
    with pytest.raises(UserError, match="acquisition must be log_ei with one objective and constraints, got 'ei'"):
        search(SPACE, measure, "bayes", **asked)
