"""The joint posterior of a finite pool of architectures, as BoTorch's acquisition functions want a model.

Shapes: N architectures of the pool; m metrics; q architectures of a batch.
"""

from __future__ import annotations

from typing import Any

import torch
from botorch.models.model import Model
from botorch.posteriors import GPyTorchPosterior
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from linear_operator import to_linear_operator
from torch import Tensor

FLOOR = 1e-6
"""Least variance, in units of a metric's variance over what was told: covariances stay factorisable."""


class PoolModel(Model):  # type: ignore[misc]
    """The joint posterior of a finite pool as a BoTorch model whose inputs are positions in the pool.

    The set to choose from is discrete and small, so its posterior is computed once; whatever an acquisition
    function asks (any batch, any pending points) is then a matter of indexing.

    Args:
        mean: [N, m]; more rows may follow, of architectures whose means alone are of interest.
        covariance: [m, N, N]; the metrics are independent.
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        super().__init__()
        self.mean = mean
        self.covariance = covariance

    @property
    def num_outputs(self) -> int:
        """m."""
        return self.mean.shape[1]

    @property
    def batch_shape(self) -> torch.Size:
        """One model, no batch of them."""
        return torch.Size()

    def posterior(
        self,
        X: Tensor,  # noqa: N803 (BoTorch's name)
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,  # noqa: ARG002 (improvement is of the metric itself)
        posterior_transform: Any = None,
    ) -> Any:
        """The posterior at positions X [..., q, 1]."""
        at = X[..., 0].long()
        outputs = output_indices or range(self.num_outputs)
        parts = [
            MultivariateNormal(
                self.mean[at, k], to_linear_operator(self.covariance[k][at[..., :, None], at[..., None, :]])
            )
            for k in outputs
        ]
        joint = parts[0] if len(parts) == 1 else MultitaskMultivariateNormal.from_independent_mvns(parts)
        posterior = GPyTorchPosterior(joint)
        return posterior_transform(posterior) if posterior_transform else posterior

    def believe(self, at: int) -> PoolModel:
        """The model after seeing its own mean at one position (kriging believer, Ginsbourger et al. 2010).

        The means stay, the covariance becomes C - c c^T / c_at with c its column at that position.
        """
        column = self.covariance[:, :, at]
        pivot = column[:, at].clamp_min(1e-12)
        covariance = self.covariance - column[:, :, None] * column[:, None, :] / pivot[:, None, None]
        covariance.diagonal(dim1=1, dim2=2).clamp_(min=FLOOR)  # rounding
        return PoolModel(self.mean, covariance)
