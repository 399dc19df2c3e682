"""Gaussian processes: what a strategy knows of metrics that it has not measured.

Shapes: n architectures told of, N asked about; F features of a kernel; m metrics.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import gpytorch
import torch
from botorch.exceptions import InputDataWarning, OptimizationWarning
from botorch.models import SingleTaskGP
from botorch.models.utils.gpytorch_modules import get_gaussian_likelihood_with_lognormal_prior
from botorch.optim.fit import fit_gpytorch_mll_scipy
from gpytorch.kernels import ScaleKernel
from gpytorch.means import ConstantMean
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

from llmnas.search.arch_kernel import Layout, make_kernel
from llmnas.space import Architecture

KernelName = Literal["hamming", "edit_distance", "walk"]

_REFIT = 1.3
"""Hyperparameters are learned again when there is this many times the data of the last time."""
_STEPS = 30


class GaussianProcess:
    """One metric over architectures; exact inference by Cholesky, hyperparameters by maximum a posteriori (L-BFGS)."""

    def __init__(self, kernel: KernelName, layout: Layout, anchors: Sequence[Architecture]) -> None:
        self.kernel = make_kernel(kernel, layout, anchors)
        self._scaled = ScaleKernel(self.kernel).double()
        self._likelihood = get_gaussian_likelihood_with_lognormal_prior().double()
        self._mean = ConstantMean().double()
        self._learned_from = 0

    def fit(self, features: Tensor, values: Tensor) -> None:
        """Condition on values [n] at features [n, F]; learn the hyperparameters where n has grown enough."""
        self._condition(features, values)
        if len(values) >= _REFIT * self._learned_from:
            self._learned_from = len(values)
            with exact(), warnings.catch_warnings():
                warnings.simplefilter("ignore", OptimizationWarning)  # a limit of steps is what is wanted
                mll = ExactMarginalLogLikelihood(self._likelihood, self.model)
                before = {name: value.clone() for name, value in mll.state_dict().items()}
                fit_gpytorch_mll_scipy(mll.train(), options={"maxiter": _STEPS})
                if not all(bool(parameter.isfinite().all()) for parameter in mll.parameters()):
                    mll.load_state_dict(before)  # the search for better ones left the numbers
        self.model.eval()

    def _condition(self, features: Tensor, values: Tensor) -> None:
        self._centre, spread = values.mean(), values.std(correction=0)
        self._spread = spread if spread > 0 else torch.ones_like(spread)
        standard = ((values - self._centre) / self._spread)[:, None]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InputDataWarning)  # one-hot features are not meant to fill a cube
            self.model = SingleTaskGP(
                features, standard, likelihood=self._likelihood, covar_module=self._scaled, mean_module=self._mean,
                outcome_transform=None, input_transform=None,
            )  # fmt: skip

    def restore(self, features: Tensor, values: Tensor, hyperparameters: dict[str, Tensor]) -> None:
        """`fit` with the hyperparameters of `model.state_dict()` instead of learning them."""
        self._condition(features, values)
        self.model.load_state_dict(hyperparameters)
        self._learned_from = len(values)
        self.model.eval()

    def joint(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean [N] and covariance [N, N] at features [N, F], in units of the values (squared)."""
        with torch.no_grad(), exact():
            posterior = self.model(features)
            mean, covariance = posterior.mean, posterior.covariance_matrix
        return mean * self._spread + self._centre, covariance * self._spread**2

    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean [N] and standard deviation [N] of the metric itself, without noise of measurement."""
        with torch.no_grad(), exact():
            posterior = self.model(features)
            return posterior.mean * self._spread + self._centre, posterior.stddev * self._spread

    def mean(self, features: Tensor) -> Tensor:
        """The mean [N] of `predict` alone, which costs a product instead of a triangular solve."""
        with torch.no_grad(), exact(), gpytorch.settings.skip_posterior_variances():
            mean: Tensor = self.model(features).mean * self._spread + self._centre
        return mean


class exact(gpytorch.settings.max_cholesky_size):  # type: ignore[misc]  # noqa: N801 (a context manager)
    """No conjugate gradients: they draw probe vectors from the global generator."""

    def __init__(self) -> None:
        super().__init__(1_000_000)
