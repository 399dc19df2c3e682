"""The sampled estimate of a loss: its mean and error by simulation, and the evaluator around it."""

import numpy as np
import pytest
import torch
from test_quality import SPACE

from llmnas.cost import Workload, costs
from llmnas.evaluate.evaluator import Evaluator, regression_estimate
from llmnas.evaluate.quality import window_losses
from llmnas.rng import generator
from llmnas.supernet import Transformer

WINDOWS = np.random.default_rng(0).integers(0, 61, (40, 18))
WORKLOAD = Workload()


def population(seed, size=60):
    """Losses of a reference and of a candidate that finds the same windows hard, though not quite."""
    rng = np.random.default_rng(seed)
    reference = rng.gamma(9, 0.3, size)
    return reference, 0.4 + 1.1 * reference + 0.1 * rng.normal(size=size)


def draws(n, count=4000, size=60):
    rng = np.random.default_rng(7)
    return [rng.choice(size, n, replace=False) for _ in range(count)]


@pytest.mark.parametrize("n", [12, 30])
def test_mean_and_error_over_random_samples(n):
    """Nearly unbiased (its bias is of order 1 / n), and the standard error is the spread that it has."""
    reference, losses = population(0)
    estimates = [regression_estimate(losses[chosen], reference, chosen) for chosen in draws(n)]
    means, errors = np.array(estimates).T
    spread = means.std()
    assert abs(means.mean() - losses.mean()) < 0.1 * spread
    assert np.sqrt((errors**2).mean()) == pytest.approx(spread, rel=0.1)
    covered = np.abs(means - losses.mean()) <= 1.96 * errors
    assert covered.mean() > 0.9


def test_it_is_far_more_precise_than_the_plain_mean():
    reference, losses = population(1)
    samples = draws(12, count=500)
    plain = np.std([losses[chosen].mean() for chosen in samples])
    ours = np.std([regression_estimate(losses[chosen], reference, chosen).mean for chosen in samples])
    assert ours < plain / 3


def test_by_least_squares():
    """The value at the population mean of the line that numpy fits."""
    reference, losses = population(2)
    chosen = np.array([3, 5, 8, 21, 34, 55])
    slope, level = np.polyfit(reference[chosen], losses[chosen], 1)
    found = regression_estimate(losses[chosen], reference, chosen)
    assert found.mean == pytest.approx(level + slope * reference.mean())
    residual = losses[chosen] - level - slope * reference[chosen]
    assert found.error == pytest.approx(np.sqrt((residual**2).sum() / 4 / 6 * (1 - 6 / 60)))


def test_a_candidate_that_is_a_line_of_the_reference_is_known_exactly():
    reference, _ = population(3)
    chosen = np.array([1, 20, 40, 59])
    found = regression_estimate(2 + 0.5 * reference[chosen], reference, chosen)
    assert found == pytest.approx((2 + 0.5 * reference.mean(), 0), abs=1e-9)


def test_all_windows_leave_nothing_to_estimate():
    reference, losses = population(4)
    found = regression_estimate(losses, reference, np.arange(60))
    assert found.mean == pytest.approx(losses.mean())
    assert found.error == 0


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_windows_have_no_error_to_speak_of(n):
    reference, losses = population(5)
    assert regression_estimate(losses[:n], reference, np.arange(n)).error == np.inf


def test_a_constant_reference_gives_the_plain_mean():
    losses = np.array([1.0, 2.0, 4.0])
    assert regression_estimate(losses, np.ones(9), np.array([0, 4, 8])).mean == pytest.approx(7 / 3)


@pytest.fixture(scope="module")
def supernet():
    return Transformer(SPACE, seed=3)


def test_the_evaluator_measures_what_it_says(supernet):
    evaluator = Evaluator(supernet, WINDOWS, 10, 3.5, WORKLOAD)
    assert len(set(evaluator.chosen)) == 10
    assert (evaluator.chosen[0], evaluator.chosen[-1]) == (0, 39)
    archs = [SPACE.sample(generator(draw, "test")) for draw in range(3)]
    for arch, found in zip(archs, evaluator(archs), strict=True):
        sample = window_losses(supernet, arch, WINDOWS[evaluator.chosen])
        estimate = regression_estimate(sample, window_losses(supernet, None, WINDOWS), evaluator.chosen)
        assert (found["val_loss"], found["val_loss_error"]) == pytest.approx(estimate)
        assert {name: found[name] for name in costs(arch, SPACE.base, WORKLOAD)} == costs(arch, SPACE.base, WORKLOAD)
        exact = window_losses(supernet, arch, WINDOWS).mean()
        assert abs(found["val_loss"] - exact) <= 5 * found["val_loss_error"]


def test_the_largest_is_measured_exactly(supernet):
    found = Evaluator(supernet, WINDOWS, 10, 3.5, WORKLOAD).measure(SPACE.largest())
    assert found["val_loss"] == pytest.approx(window_losses(supernet, None, WINDOWS).mean(), rel=1e-6)
    assert found["val_loss_error"] == pytest.approx(0, abs=1e-5)


def test_more_than_there_is_takes_all(supernet):
    evaluator = Evaluator(supernet, WINDOWS, 1000, 3.5, WORKLOAD)
    found = evaluator.measure(SPACE.smallest())
    assert found["val_loss"] == pytest.approx(window_losses(supernet, SPACE.smallest(), WINDOWS).mean())
    assert found["val_loss_error"] == 0


def test_the_order_of_candidates_does_not_matter_and_the_model_stays_as_it_was(supernet):
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    mode = supernet.training
    evaluator = Evaluator(supernet, WINDOWS, 8, 3.5, WORKLOAD)
    archs = [SPACE.sample(generator(draw, "test")) for draw in range(4)]
    assert evaluator(archs) == evaluator(archs[::-1])[::-1] == [evaluator.measure(arch) for arch in archs]
    assert supernet.training is mode
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())
    assert all(parameter.grad is None for parameter in supernet.parameters())
