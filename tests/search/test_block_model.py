"""Learned block scores: exact where they can be, and the posterior mean of the stated prior everywhere."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.stats import kendalltau
from toy_problem import SPACE, members, val_loss

from llmnas.search import block_model
from llmnas.search.block_model import BlockLayout, BlockModel, Scores
from llmnas.search.block_scores import parent_of
from llmnas.search.mip import replaced
from llmnas.space import Architecture, SearchSpace

LAYOUT = BlockLayout(SPACE)


def predicted(scores: Scores, layout: BlockLayout, archs: list[Architecture]) -> np.ndarray:
    c, choice = layout.encode(archs)
    return scores.base[c] + scores.blocks[c[:, None], np.arange(choice.shape[1]), choice].sum(1)


def drawn(count: int, seed: int, space: SearchSpace = SPACE) -> list[Architecture]:
    rng = np.random.default_rng(seed)
    return list(dict.fromkeys(space.sample(rng) for _ in range(2 * count)))[:count]


def test_replacements_alone_give_the_scores_of_an_additive_metric():
    rng = np.random.default_rng(0)
    true = Scores(rng.normal(size=len(LAYOUT.cells)), rng.normal(size=(len(LAYOUT.cells), 4, LAYOUT.options)))
    some = range(0, len(LAYOUT.cells), 4)
    told = list(
        dict.fromkeys(
            replaced(parent_of(SPACE, cell), i, spec)
            for cell in (LAYOUT.cells[c] for c in some)
            for i in range(SPACE.layers)
            for spec in cell.options
        )
    )
    model = BlockModel(LAYOUT)
    model.fit(*LAYOUT.encode(told), predicted(true, LAYOUT, told))
    inside = [arch for arch in members(SPACE) if LAYOUT.encode([arch])[0][0] in some]
    np.testing.assert_allclose(predicted(model.scores, LAYOUT, inside), predicted(true, LAYOUT, inside), atol=1e-3)


def test_scores_are_the_posterior_mean_of_the_sum_of_effects():
    told, asked = drawn(30, 0), drawn(20, 1)
    values = np.array([val_loss(arch) for arch in told])
    model = BlockModel(LAYOUT)
    model.fit(*LAYOUT.encode(told), values)
    both = [f.toarray() for f in LAYOUT.features(*LAYOUT.encode([*told, *asked]))]
    kernel = 0.0
    for variance, f in zip(np.exp(model._log[:-1]), both, strict=True):
        kernel = kernel + variance * f @ f.T / (f[:30] ** 2).sum(1).mean()
    noise = np.exp(model._log[-1]) * np.eye(30)
    standard = (values - values.mean()) / values.std()
    mean = kernel[30:, :30] @ np.linalg.solve(kernel[:30, :30] + noise, standard)
    np.testing.assert_allclose(predicted(model.scores, LAYOUT, asked), mean * values.std() + values.mean(), rtol=1e-8)


def test_the_likelihood_has_the_gradient_that_is_used(monkeypatch):
    told = drawn(12, 0)
    grams = [(f @ f.T).toarray() for f in LAYOUT.features(*LAYOUT.encode(told))]
    start = np.linspace(-2.0, -1.0, len(grams) + 1)
    seen = {}

    class Stop:
        x = start

    def minimize(negative, x, **_):
        seen["value"], seen["gradient"] = negative(x)
        seen["numeric"] = approx_fprime(x, lambda log: negative(log)[0], 1e-6)
        return Stop

    monkeypatch.setattr(block_model, "minimize", minimize)
    y = np.random.default_rng(0).normal(size=12)
    block_model._learned(grams, y, start)
    covariance = sum(np.exp(v) * k for v, k in zip(start, [*grams, np.eye(12)], strict=True))
    exact = 0.5 * (y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(covariance)[1])
    assert seen["value"] == pytest.approx(exact)
    np.testing.assert_allclose(seen["gradient"], seen["numeric"], rtol=1e-4)


def test_few_networks_rank_a_space_with_many_blocks():
    told, held = drawn(48, 2), drawn(200, 3)
    model = BlockModel(LAYOUT)
    model.fit(*LAYOUT.encode(told), np.array([val_loss(arch) for arch in told]))
    true = [val_loss(arch) for arch in held]
    assert kendalltau(predicted(model.scores, LAYOUT, held), true).statistic > 0.8


def test_a_layer_without_choices_and_equal_values_are_no_trouble():
    space = SPACE.model_copy(update={"ffn_size": SPACE.ffn_size.model_copy(update={"per_layer": False})})
    layout = BlockLayout(space)
    told = drawn(10, 0, space)
    model = BlockModel(layout)
    model.fit(*layout.encode(told), np.ones(10))
    np.testing.assert_allclose(predicted(model.scores, layout, told), 1.0)
