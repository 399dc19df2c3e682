"""Logarithm of the expected improvement of a hypervolume, in closed form.

Shapes: b architectures, one in each t-batch; K cells of the volume that no point of the front dominates; m objectives.
"""

from __future__ import annotations

import torch
from botorch.acquisition.analytic import _log_ei_helper
from botorch.acquisition.multi_objective import ExpectedHypervolumeImprovement
from botorch.models.model import Model
from botorch.utils.multi_objective.box_decompositions import FastNondominatedPartitioning
from botorch.utils.safe_math import logdiffexp
from botorch.utils.transforms import t_batch_mode_transform
from torch import Tensor


class LogExpectedHypervolumeImprovement(ExpectedHypervolumeImprovement):  # type: ignore[misc]
    """log sum_k prod_j (h(l_kj) - h(u_kj)), where h(z) = E[(y_j - z)+] and y_j ~ N(mean_j, deviation_j^2).

    The cells [l_k, u_k] share out what the front leaves of the space above the reference (Yang et al. 2019): a point
    adds prod_j (min(y_j, u_kj) - l_kj)+ of cell k, and independent objectives make the expectation of the product
    the product of expectations. BoTorch's class has the same value; far below the front it is 0 or cancelled away.
    Here log h is the log expected improvement (Ament et al. 2023), so the order of a pool holds there too. Without
    samples: exact, and the same for equal numbers.

    Args:
        model: its first m outputs are the objectives, greater is better.
        reference: [m].
        points: [n, m], at least one better than the reference in every objective; those dominated do not matter.
    """

    def __init__(self, model: Model, reference: Tensor, points: Tensor) -> None:
        super().__init__(model, reference.tolist(), FastNondominatedPartitioning(reference, points))

    @t_batch_mode_transform(expected_q=1)  # type: ignore[untyped-decorator]
    def forward(self, X: Tensor) -> Tensor:  # noqa: N803 (BoTorch's name)
        """[b, 1, d] -> [b]."""
        posterior = self.model.posterior(X)
        count = len(self.ref_point)
        mean, deviation = posterior.mean[..., :count], posterior.variance[..., :count].sqrt()
        ends = torch.stack([self.cell_lower_bounds, self.cell_upper_bounds])
        # [2, b, K, m]; a cell without an upper end has h = 0 there
        above = _log_ei_helper((mean - ends[:, None]).clamp_min(-1e100) / deviation) + deviation.log()
        # of ends that are all but one number, rounding may leave the farther one more
        length = logdiffexp(log_a=torch.minimum(above[1], above[0]), log_b=above[0])
        return torch.logsumexp(length.sum(-1), dim=-1)
