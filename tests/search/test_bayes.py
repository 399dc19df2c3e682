"""Acquisitions against their formulas, the pool against its process, and the advantage over random search."""

import math
from collections.abc import Sequence
from typing import Any

import moocore
import numpy as np
import pytest
import torch
from scipy.stats import norm, wilcoxon
from toy_problem import BUDGET, ONE, SPACE, TWO, measure, members, params, val_loss

from llmnas.cost import Budget
from llmnas.pareto import Evaluation, front, hypervolume
from llmnas.search import Problem, search
from llmnas.search.arch_kernel import Layout
from llmnas.search.bayes import BayesianSearch, BayesOptions
from llmnas.search.closed_forms import ClosedForms
from llmnas.search.pool_model import PoolModel
from llmnas.search.surrogate import GaussianProcess
from llmnas.space import Architecture


def draw(count: int, seed: int = 0) -> list[Architecture]:
    rng = np.random.default_rng(seed)
    return list(dict.fromkeys(SPACE.sample(rng) for _ in range(2 * count)))[:count]


def told(archs: Sequence[Architecture]) -> list[Evaluation]:
    return [Evaluation(a, m, None, i) for i, (a, m) in enumerate(zip(archs, measure(archs), strict=True))]


def strategy(objectives=ONE, constraints=None, budget=None, **options) -> BayesianSearch:
    return BayesianSearch(Problem(SPACE, objectives, constraints or {}, budget, 0), BayesOptions(**options))


def fitted(searcher: BayesianSearch, count: int = 30):
    """A strategy that was told `count` evaluations, its pool of other architectures and the pool's model."""
    archs = draw(count + 20)
    searcher.tell(told(archs[:count]))
    scale = searcher._fit(searcher._region())
    pool = archs[count:]
    return pool, scale, searcher._pool_model(pool, scale)


def scores(searcher: BayesianSearch, model: PoolModel, size: int, pending=()) -> np.ndarray:
    with torch.no_grad():
        value = searcher._acquisition(model, size, pending)
        return value(torch.arange(size, dtype=torch.float64)[:, None, None]).numpy()


@pytest.mark.parametrize("acquisition", ["log_ei", "ei"])
def test_expected_improvement_is_its_closed_form(acquisition):
    searcher = strategy(acquisition=acquisition)
    pool, _, model = fitted(searcher)
    mean, deviation = model.mean[: len(pool), 0].numpy(), model.covariance[0].diagonal()[: len(pool)].sqrt().numpy()
    gain = mean - model.mean[len(pool) :, 0].max().item()
    expected = deviation * (gain / deviation * norm.cdf(gain / deviation) + norm.pdf(gain / deviation))
    found = scores(searcher, model, len(pool))
    likely = expected > 1e-8
    assert likely.sum() > 3
    np.testing.assert_allclose(
        np.exp(found[likely]) if acquisition == "log_ei" else found[likely], expected[likely], rtol=1e-4
    )


def test_constraints_multiply_the_improvement_by_their_probability():
    free, bound = strategy(), strategy(constraints={"val_loss": (2.0, None), "other": 1.5})
    archs = draw(50)
    evaluations = [Evaluation(e.arch, e.metrics | {"other": e.metrics["val_loss"] / 2}) for e in told(archs)]
    for searcher in (free, bound):
        searcher.tell(evaluations[:30])
    scale = bound._fit(bound._region())
    model = bound._pool_model(archs[30:], scale)
    found = scores(bound, model, 20)
    best = max(
        m.item()
        for m, e in zip(model.mean[20:, 0], bound._elite, strict=True)
        if e.metrics["other"] <= 1.5 and e.metrics["val_loss"] >= 2.0
    )
    mean, deviation = model.mean[:20].numpy(), np.stack([c.diagonal()[:20].sqrt().numpy() for c in model.covariance], 1)
    z = (mean[:, 0] - best) / deviation[:, 0]
    improvement = deviation[:, 0] * (z * norm.cdf(z) + norm.pdf(z))
    low = (2.0 - scale[0][0].item()) / scale[1][0].item()
    limit = (1.5 - scale[0][1].item()) / scale[1][1].item()
    probability = norm.cdf((mean[:, 1] - low) / deviation[:, 1]) * norm.cdf((limit - mean[:, 2]) / deviation[:, 2])
    expected = improvement * probability
    likely = expected > 1e-6
    assert likely.any()
    np.testing.assert_allclose(np.exp(found[likely]), expected[likely], rtol=1e-3)


def test_hypervolume_improvement_of_a_sure_pool_is_the_exact_one():
    searcher = strategy(TWO)
    pool, _, model = fitted(searcher)
    sure = PoolModel(model.mean, 1e-10 * torch.eye(len(model.mean), dtype=torch.float64).expand(2, -1, -1))
    found = np.exp(scores(searcher, sure, len(pool)))
    points = sure.mean.numpy()
    base = points[len(pool) :]
    reference = base.min(0) - 0.1 * np.maximum(base.max(0) - base.min(0), 0.1)
    before = moocore.hypervolume(-base, ref=-reference)
    gains = [moocore.hypervolume(-np.vstack([base, p]), ref=-reference) - before for p in points[: len(pool)]]
    assert max(gains) > 1e-3
    np.testing.assert_allclose(found, gains, atol=0.02 * max(gains))


def test_a_pending_architecture_is_not_wanted_twice():
    searcher = strategy(TWO)
    pool, _, model = fitted(searcher)
    alone = scores(searcher, model, len(pool))
    best = int(alone.argmax())
    others = [i for i in range(len(pool)) if i != best]
    after = scores(searcher, PoolModel(model.mean, model.covariance), len(pool), [best])[others]
    assert (after <= alone[others] + 1e-3).mean() > 0.9


def test_believing_a_mean_is_conditioning_on_it():
    process = GaussianProcess("hamming", Layout(SPACE), ())
    layout, archs = Layout(SPACE), draw(60)
    features = process.kernel.embed(layout.codes(archs))
    values = torch.tensor([val_loss(a) for a in archs], dtype=torch.float64)
    process.fit(features[:40], values[:40])
    mean, covariance = process.joint(features[40:])
    believed = PoolModel(mean[:, None], covariance[None]).believe(3)
    kernel = covariance.numpy()
    expected = kernel - np.outer(kernel[:, 3], kernel[3]) / kernel[3, 3]
    np.testing.assert_allclose(np.triu(believed.covariance[0].numpy(), 1), np.triu(expected, 1), atol=1e-9)
    assert believed.covariance[0, 3, 3] <= 1e-6


def test_the_process_is_gaussian_regression_by_hand():
    process, layout, archs = GaussianProcess("hamming", Layout(SPACE), ()), Layout(SPACE), draw(50)
    features = process.kernel.embed(layout.codes(archs))
    values = torch.tensor([val_loss(a) for a in archs], dtype=torch.float64)
    process.fit(features[:35], values[:35])
    mean, covariance = process.joint(features[35:])
    with torch.no_grad():
        gram = (process._scaled.outputscale * process.kernel(features, features).to_dense()).numpy()
    noise, constant = process._likelihood.noise.item(), process._mean.constant.item()
    y = ((values[:35] - values[:35].mean()) / values[:35].std(correction=0)).numpy() - constant
    inner = np.linalg.solve(gram[:35, :35] + noise * np.eye(35), np.column_stack([y, gram[:35, 35:]]))
    spread = values[:35].std(correction=0).item()
    by_hand = (gram[35:, :35] @ inner[:, 0] + constant) * spread + values[:35].mean().item()
    np.testing.assert_allclose(mean, by_hand, rtol=1e-6)
    np.testing.assert_allclose(covariance, (gram[35:, 35:] - gram[35:, :35] @ inner[:, 1:]) * spread**2, atol=1e-6)
    error = np.abs(mean.numpy() - values[35:].numpy()).mean()
    assert error < 0.5 * np.abs(values[35:] - values[:35].mean()).mean()


def test_a_cost_in_closed_form_is_computed_until_something_contradicts_it():
    problem = Problem(SPACE, TWO, {}, None, 0)
    known = ClosedForms(problem)
    evaluations = told(draw(5))
    known.check(evaluations)
    assert known.names == ["params"]
    assert known.values([e.arch for e in evaluations])[:, 0].tolist() == [params(e.arch) for e in evaluations]
    known.check([Evaluation(draw(1)[0], {"val_loss": 1.0, "params": 3.0})])
    assert known.names == []
    assert known.values(draw(2)).shape == (2, 0)


def test_samples_agree_with_the_closed_form_of_the_hypervolume():
    exact, sampled = strategy(TWO), strategy(TWO, acquisition="qlognehvi")
    pool, _, model = fitted(exact)
    closed = scores(exact, model, len(pool))
    _, _, joint = fitted(sampled)
    assert joint.covariance.shape[1] == len(pool) + len(sampled._elite)  # of the best told as well
    drawn = scores(sampled, joint, len(pool))
    likely = closed > np.log(1e-3)
    assert likely.sum() >= 5
    np.testing.assert_allclose(np.exp(drawn[likely]), np.exp(closed[likely]), rtol=0.1, atol=0.03)  # of 16 samples
    best = int(drawn.argmax())
    assert scores(sampled, joint, len(pool), pending=[best])[best] < drawn[best] - 1  # another of it adds little


@pytest.mark.parametrize("constraints", [{}, {"val_loss": 3.0}])
def test_a_search_by_samples_is_repeatable_and_stays_ahead_of_random(constraints):
    options = {"acquisition": "qlognehvi", "pool": 64}
    arguments = {"objectives": TWO, "budget": BUDGET, "evaluations": 40, "batch": 4, "constraints": constraints}
    first, again = (search(SPACE, measure, "bayes", options=options, **arguments) for _ in range(2))
    assert [e.arch for e in first.evaluations] == [e.arch for e in again.evaluations]
    drawn = search(SPACE, measure, "random", **arguments)
    worst = {name: max(e.metrics[name] for e in (*first.evaluations, *drawn.evaluations)) for name in TWO}
    ours, theirs = (hypervolume(a.front(), TWO, worst) for a in (first, drawn))
    assert ours > theirs


def test_the_models_see_the_front_and_what_is_nearest_to_it():
    searcher = strategy(TWO, points=40)
    evaluations = told(draw(300))
    searcher.tell(evaluations)
    region = searcher._region()
    assert len(region) == 40
    best = front(evaluations, TWO)
    assert len(searcher._elite) == min(len(best), 64)
    assert all(e in region and e in best for e in searcher._elite)
    layout = Layout(SPACE)
    codes = layout.codes([e.arch for e in evaluations])
    distance = torch.stack([(codes != c).sum(1) for c in layout.codes([e.arch for e in searcher._elite])]).amin(0)
    inside = {e.index for e in region}
    assert max(distance[i] for i in inside) <= min(d for i, d in enumerate(distance) if i not in inside)


def test_failures_are_avoided():
    def fragile(archs: Sequence[Architecture]) -> list[dict[str, float]]:
        return [{"val_loss": math.nan if a.hidden_size == 96 else val_loss(a)} for a in archs]

    found = search(SPACE, fragile, "bayes", ONE, evaluations=40, options={"pool": 32}).evaluations
    early, late = found[:16], found[24:]
    assert np.mean([e.failure is not None for e in late]) < np.mean([e.failure is not None for e in early])


def first_hit(name: str, seed: int, most: int, optimum: float) -> int:
    """Evaluations until the optimum was measured; `most` + 1 where it was not."""
    run = search(SPACE, measure, name, ONE, BUDGET, evaluations=most, seed=seed)
    hits = [e.index + 1 for e in run.evaluations if e.metrics["val_loss"] <= optimum + 1e-9]
    return hits[0] if hits else most + 1


def compare(seeds: int, ours: int, theirs: int) -> tuple[np.ndarray, np.ndarray]:
    optimum = min(val_loss(arch) for arch in members(SPACE) if BUDGET.admits(SPACE.base, arch))
    bayes = [first_hit("bayes", seed, ours, optimum) for seed in range(seeds)]
    return np.array(bayes), np.array([first_hit("random", seed, theirs, optimum) for seed in range(seeds)])


@pytest.mark.parametrize(
    ("seeds", "p"), [(4, 0.07), pytest.param(20, 1e-4, marks=pytest.mark.full)], ids=["four", "twenty"]
)
def test_needs_fewer_evaluations_than_random_search(seeds, p):
    bayes, baseline = compare(seeds, 48, 400)
    assert wilcoxon(bayes, baseline, alternative="less").pvalue < p
    assert np.median(bayes) * 4 < np.median(baseline)


@pytest.mark.full
@pytest.mark.parametrize("kernel", ["edit_distance", "walk"])
def test_the_other_kernels_beat_random_search_too(kernel):
    """In the mean of a few seeds; the default kernel is compared over twenty."""

    def best(strategy: str, **options: Any) -> list[float]:
        found = [
            search(SPACE, measure, strategy, ONE, BUDGET, evaluations=60, seed=i, options=options) for i in range(4)
        ]
        return [archive.front()[0].metrics["val_loss"] for archive in found]

    assert np.mean(best("bayes", kernel=kernel)) < np.mean(best("random"))


def test_three_objectives_and_a_constraint():
    goals = {"val_loss": "min", "params": "min", "depth": "min"}

    def three(archs: Sequence[Architecture]) -> list[dict[str, float]]:
        return [m | {"depth": float(a.depth)} for a, m in zip(archs, measure(archs), strict=True)]

    archive = search(
        SPACE, three, "bayes", goals, Budget(max_params=90_000), {"depth": (3, None)}, 24,
        options={"start": 12, "pool": 16},
    )  # fmt: skip
    assert len(archive) == 24
    assert np.mean([e.metrics["depth"] >= 3 for e in archive.evaluations[16:]]) > 0.7


def test_nothing_is_compiled(monkeypatch):
    """A killed process would leave a lock on the compiler's folder, on which every later search waits for ever."""
    monkeypatch.setattr("torch.utils.cpp_extension.load", lambda **options: pytest.fail("compiles a kernel"))
    assert len(search(SPACE, measure, "bayes", TWO, evaluations=24, options={"start": 12, "pool": 16})) == 24
