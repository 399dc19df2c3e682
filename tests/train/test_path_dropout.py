"""Path dropout: the law of what is dropped, its conditions, and its schedule."""

import itertools
from collections import Counter

import pytest
from scipy.stats import chisquare
from test_sampling import LEAST, SPACE, params, sampler

from llmnas.cost import Budget
from llmnas.errors import UserError
from llmnas.rng import generator
from llmnas.space import SearchSpace
from llmnas.train.path_dropout import drop_layers

WHOLE = SPACE.largest()


def law(arch, rate, budget):
    """{kept layers: probability}: every subset, by the product of its decisions, over those that are allowed."""
    found = {}
    for choice in itertools.product([False, True], repeat=arch.depth):
        kept, weight = {}, 1.0
        for (i, spec), stays in zip(arch.kept, choice, strict=True):
            gone = rate * (i + 1) / 6
            weight *= 1 - gone if stays else gone
            if stays:
                kept[i] = spec
        if kept and SPACE.allows(tuple(kept)) and budget.admits(SPACE.base, SPACE.build(arch.hidden_size, kept)):
            found[tuple(kept)] = weight
    total = sum(found.values())
    return {kept: weight / total for kept, weight in found.items()}


@pytest.mark.parametrize("budget", [Budget(), Budget(min_params=int(0.6 * params(WHOLE)))])
def test_each_layer_goes_by_itself_deeper_ones_more_often(budget):
    rng = generator(0, "test")
    draws = 4000
    found = Counter(tuple(i for i, _ in drop_layers(SPACE, budget, WHOLE, 0.5, rng).kept) for _ in range(draws))
    expected = {kept: draws * p for kept, p in law(WHOLE, 0.5, budget).items()}
    assert set(found) <= set(expected)
    likely = [kept for kept in expected if expected[kept] >= 5]
    rest = [sum(c.get(k, 0) for k in set(expected) - set(likely)) + 1e-9 for c in (found, expected)]
    counted = [[c.get(kept, 0) for kept in likely] + [r] for c, r in zip((found, expected), rest, strict=True)]
    assert chisquare(counted[0], counted[1], sum_check=False).pvalue > 0.001
    assert len(found) > 3


def test_what_stays_is_as_it_was():
    arch = SPACE.sample(generator(5, "test"))
    for i in range(20):
        found = drop_layers(SPACE, None, arch, 0.9, generator(i, "test"))
        assert found.hidden_size == arch.hidden_size
        assert set(found.kept) <= set(arch.kept)


def test_the_ends_that_the_space_keeps_are_kept():
    space = SearchSpace.from_dict({**SPACE.model_dump(), "depth": {"choices": [2, 4, 6], "policy": "keep_ends"}})
    found = [drop_layers(space, None, space.largest(), 0.7, generator(i, "test")) for i in range(50)]
    assert all(space.contains(arch) for arch in found)
    assert {arch.depth for arch in found} == {2, 4, 6}


def test_the_rate_rises_over_the_ramp():
    plain = sampler(anchor_every=0)
    drawn = sampler(anchor_every=0, path_dropout={"rate": 0.8, "ramp": 400})
    lost = [plain.draw(step, 0).depth - drawn.draw(step, 0).depth for step in range(800)]
    assert lost[0] == 0
    assert min(lost) == 0
    thirds = [sum(lost[i : i + 200]) for i in (0, 200, 400, 600)]
    assert thirds[0] < thirds[1] < thirds[2]
    assert abs(thirds[2] - thirds[3]) < 0.25 * thirds[2]


def test_every_network_is_within_the_budget():
    budget = Budget(min_params=int(1.5 * LEAST), max_params=int(2.5 * LEAST))
    drawn = sampler(budget=budget, kind="uniform", random=4, path_dropout={"rate": 0.9})
    for step in range(20):
        assert all(SPACE.contains(a) and budget.admits(SPACE.base, a) for a in drawn.networks(step))
    assert drawn.networks(3) == drawn.networks(3)


@pytest.mark.parametrize("depth", [{"choices": [2, 4], "policy": "even"}, {"choices": [4]}])
def test_a_space_without_a_layer_to_drop_is_refused(depth):
    space = SearchSpace.from_dict({**SPACE.model_dump(), "depth": depth})
    with pytest.raises(UserError, match="leaves no layer to drop"):
        sampler(space=space, path_dropout={"rate": 0.5})
