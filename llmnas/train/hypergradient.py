"""The gradient of the validation loss with respect to alpha (DARTS, Liu et al. 2019, section 2.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Loss = Callable[[], Tensor]
_RADIUS = 0.01  # of the finite difference: eps = 0.01 / ||grad_w' L_val||, the authors' choice


def first_order(val_loss: Loss, alphas: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """grad_a L_val(w, a): the weights are taken for optimal (xi = 0)."""
    return _gradients(val_loss(), alphas)


def second_order(
    train_loss: Loss, val_loss: Loss, weights: Sequence[Tensor], alphas: Sequence[Tensor], xi: float
) -> tuple[Tensor, ...]:
    """The gradient through one step of plain gradient descent on the weights (eq. 7 and 8).

        w' = w - xi grad_w L_train(w, a)
        grad_a L_val(w', a) - xi [grad_a L_train(w+, a) - grad_a L_train(w-, a)] / (2 eps)
        w+- = w +- eps grad_w' L_val

    The bracket over 2 eps is a central difference for the mixed second derivative times grad_w' L_val.

    Args:
        train_loss, val_loss: scalars at the present values of `weights` and `alphas`; called again after these changed.
        weights: changed in place while this runs, and put back bit for bit, also where a loss raises.
        alphas: what to differentiate by.
        xi: step size of the inner step.

    Returns:
        One tensor an alpha.
    """
    before = [weight.detach().clone() for weight in weights]
    try:
        _move(weights, before, _gradients(train_loss(), weights), -xi)
        found = _gradients(val_loss(), [*weights, *alphas])
        direction, direct = found[: len(weights)], found[len(weights) :]
        length = torch.stack([part.norm() for part in direction]).norm()
        if not float(length) > 0:  # nothing to look through: L_val does not depend on w (or is not finite)
            return tuple(direct)
        eps = _RADIUS / float(length)
        _move(weights, before, direction, eps)
        plus = _gradients(train_loss(), alphas)
        _move(weights, before, direction, -eps)
        minus = _gradients(train_loss(), alphas)
    finally:
        _move(weights, before, before, 0.0)
    return tuple(d - xi * (p - m) / (2 * eps) for d, p, m in zip(direct, plus, minus, strict=True))


@torch.no_grad()
def _move(weights: Sequence[Tensor], origin: Sequence[Tensor], direction: Sequence[Tensor], step: float) -> None:
    """Set every weight to origin + step * direction."""
    for weight, start, way in zip(weights, origin, direction, strict=True):
        weight.copy_(start)
        if step:
            weight.add_(way, alpha=step)


def _gradients(loss: Tensor, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, list(values), allow_unused=True, materialize_grads=True)
