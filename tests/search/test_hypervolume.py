"""The logarithm of the expected hypervolume improvement against BoTorch's value, by samples, and where that is 0."""

import numpy as np
import pytest
import torch
from botorch.acquisition.multi_objective import ExpectedHypervolumeImprovement
from botorch.utils.multi_objective.box_decompositions import FastNondominatedPartitioning
from scipy.stats import norm

from llmnas.pareto import Evaluation, hypervolume
from llmnas.search.hypervolume import LogExpectedHypervolumeImprovement
from llmnas.search.pool_model import PoolModel

POINTS = torch.tensor([[0.1, 0.9], [0.5, 0.6], [0.8, 0.2], [0.4, 0.5]], dtype=torch.float64)
"""The last is dominated."""


def sure(mean: list[list[float]], deviation: float) -> tuple[PoolModel, torch.Tensor]:
    """A pool of independent architectures, and its positions."""
    means = torch.tensor(mean, dtype=torch.float64)
    covariance = deviation**2 * torch.eye(len(means), dtype=torch.float64).expand(means.shape[1], -1, -1)
    return PoolModel(means, covariance), torch.arange(len(means), dtype=torch.float64)[:, None, None]


@pytest.mark.parametrize("objectives", [2, 3])
def test_is_the_logarithm_of_botorchs(objectives):
    points = torch.cat([POINTS, POINTS.flip(0)], dim=1)[:, :objectives]
    reference = torch.zeros(objectives, dtype=torch.float64)
    rng = np.random.default_rng(0)
    model, at = sure(rng.uniform(0, 1, (20, objectives)).tolist(), 0.2)
    found = LogExpectedHypervolumeImprovement(model, reference, points)(at)
    partition = FastNondominatedPartitioning(reference, points)
    expected = ExpectedHypervolumeImprovement(model, reference.tolist(), partition)(at)
    np.testing.assert_allclose(found.exp(), expected, rtol=1e-6)


def test_is_the_mean_over_samples():
    model, at = sure([[0.6, 0.5]], 0.3)
    found = LogExpectedHypervolumeImprovement(model, torch.zeros(2, dtype=torch.float64), POINTS)(at).exp().item()
    goals, reference = {"a": "max", "b": "max"}, {"a": 0.0, "b": 0.0}

    def volume(points: np.ndarray) -> float:
        return hypervolume([Evaluation(None, {"a": a, "b": b}) for a, b in points], goals, reference)

    drawn = np.random.default_rng(0).normal([0.6, 0.5], 0.3, (4000, 2))
    gains = [volume(np.vstack([POINTS.numpy(), y])) - volume(POINTS.numpy()) for y in drawn]
    assert abs(np.mean(gains) - found) < 4 * np.std(gains) / len(gains) ** 0.5


def test_keeps_the_order_far_below_the_front():
    """Where BoTorch's is 0: 20, 40 and 60 deviations."""
    model, at = sure([[0.2, 0.5], [0.2, 0.4], [0.2, 0.3]], 0.005)
    reference = torch.zeros(2, dtype=torch.float64)
    found = LogExpectedHypervolumeImprovement(model, reference, POINTS)(at)
    assert torch.isfinite(found).all()
    assert (found.diff() < -100).all()
    assert found.tolist() == pytest.approx(norm.logpdf([20, 40, 60]).tolist(), rel=0.1)


def test_equal_points_and_cells_of_no_size_are_numbers():
    points = torch.cat([POINTS, POINTS, POINTS + torch.tensor([1e-16, -1e-16])])
    model, at = sure([[0.7, 0.7], [0.5, 0.6]], 0.1)
    found = LogExpectedHypervolumeImprovement(model, torch.zeros(2, dtype=torch.float64), points)(at)
    assert torch.isfinite(found).all()
