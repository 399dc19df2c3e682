"""The dominant eigenvalue of alpha's Hessian, and the early stopping that watches it.

Zela et al. 2020, "Understanding and Robustifying Differentiable Architecture Search": where a search collapses, this
eigenvalue has grown before (section 4), and stopping in time avoids it (section 5.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from llmnas.rng import generator
from llmnas.train.hypergradient import Loss

GROWTH = 0.75  # the search ends where mean(now - window) / mean(now) falls below
_TOLERANCE = 1e-3  # relative, of the eigenvalue


def dominant_eigenvalue(loss: Loss, alphas: Sequence[Tensor], seed: int = 0) -> float:
    """The eigenvalue of the Hessian of `loss` in all alphas with the greatest magnitude, with its sign.

    Lanczos (ARPACK) on exact Hessian-vector products: the Hessian itself is never formed.

    Args:
        loss: scalar, twice differentiable.
        alphas: any shapes.
        seed: of the first vector: the same call gives the same number.

    Returns:
        NaN where the loss is not finite, or Lanczos does not come to an end (two eigenvalues of one magnitude).
    """
    # only the plain form of attention can be differentiated twice
    with sdpa_kernel(SDPBackend.MATH):
        gradient = _flat(torch.autograd.grad(loss(), list(alphas), create_graph=True))

    def product(vector: np.ndarray) -> np.ndarray:
        along = torch.from_numpy(vector.reshape(-1)).to(gradient)
        found = torch.autograd.grad(
            gradient @ along, list(alphas), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return _flat(found).double().cpu().numpy()

    size = gradient.numel()
    if not bool(gradient.isfinite().all()):
        return math.nan
    start = generator(seed, "eigenvalue").standard_normal(size)
    if size == 1:
        return float(product(np.ones(1))[0])
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    try:
        found = eigsh(operator, k=1, which="LM", v0=start, tol=_TOLERANCE, return_eigenvectors=False)
    except ArpackNoConvergence:
        return math.nan
    return float(found[0])


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def smoothed(eigenvalues: Sequence[float], window: int) -> list[float]:
    """Mean magnitude over each point and the `window` - 1 before it; NaN while there are fewer."""
    sizes = np.abs(eigenvalues)
    means = [float(sizes[i + 1 - window : i + 1].mean()) for i in range(window - 1, len(sizes))]
    return [math.nan] * (len(sizes) - len(means)) + means


def stopping_point(eigenvalues: Sequence[float], window: int) -> int | None:
    """The point to go back to, or None while the search may go on.

    The search ends at the first point i at which the smoothed eigenvalue has grown by more than 1 / 0.75 over
    `window` points, and its result is that of point i - window (Zela et al. 2020, section 5.1).
    """
    means = smoothed(eigenvalues, window)
    for i in range(window, len(means)):
        if means[i - window] / means[i] < GROWTH:
            return i - window
    return None
