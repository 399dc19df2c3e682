"""The orthogonal part of a matrix by Newton-Schulz iterations, as Muon uses it."""

from __future__ import annotations

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """[n, rows, columns] -> matrices of the same singular vectors, whose singular values are near 1 (0.7 to 1.2).

    Five steps of X <- a X + (b X X^T + c (X X^T)^2) X from X / |X|, with the coefficients of Jordan et al. 2024 ("Muon:
    an optimizer for hidden layers in neural networks"), which reach for speed instead of convergence to 1. In the
    type that it is given: half precision is no faster on CPUs. A matrix of zeros stays one.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    for _ in range(_STEPS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
