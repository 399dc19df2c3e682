"""Cross entropy of a linear head, a few rows of logits at a time.

On a CPU the loss, not the layers, was most of a small network's step: 2048 x 4096 logits are 33 MB, and log-softmax,
its backward, the gather's and their zero fills each stream them through memory. Here a block of rows stays in the
cache from its logits to its gradients, which are formed in the forward pass; nothing of size tokens x vocabulary
exists. (torch 2.13's `linear_cross_entropy` with chunking options is the same idea and slower there than without.)

Shapes: N tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

ROWS = 128  # 2 MB of fp32 logits at 4096 classes; 64 to 256 are within 10 % of each other


def linear_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log softmax(hidden head^T)[target], nats a token; a scalar.

    Equal to `torch.nn.functional.linear_cross_entropy` (torch 2.13) up to rounding. On anything but a CPU torch's two
    functions run, which is what that one does by default.

    Args:
        hidden: [N, H].
        head: [V, H].
        targets: [N] int64.
    """
    if hidden.device.type != "cpu":
        return F.cross_entropy(F.linear(hidden, head), targets)
    if torch.is_grad_enabled() and (hidden.requires_grad or head.requires_grad):
        loss: Tensor = _LinearCrossEntropy.apply(hidden, head, targets)  # type: ignore[no-untyped-call]
        return loss
    return token_losses(hidden, head, targets).mean()


@torch.no_grad()
def token_losses(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(hidden head^T)[target] of every token, [N], without a graph."""
    blocks = (slice(first, first + ROWS) for first in range(0, len(hidden), ROWS))
    return torch.cat([F.cross_entropy(_logits(hidden[b], head), targets[b], reduction="none") for b in blocks])


def _logits(hidden: Tensor, head: Tensor) -> Tensor:
    logits = F.linear(hidden, head)
    return logits if logits.dtype == torch.float64 else logits.float()


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient of the logits is (softmax - onehot) / N, so it needs nothing from the backward pass but a factor."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        hidden_grad = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        head_grad = torch.zeros(head.shape, dtype=head.dtype)
        losses = []
        for first in range(0, len(hidden), ROWS):
            rows = slice(first, first + ROWS)
            h, target = hidden[rows], targets[rows, None]
            logits = _logits(h, head)
            greatest, wanted = logits.amax(1, keepdim=True), logits.gather(1, target)
            p = logits.softmax(1)
            # log of the sum of exponentials, from the one probability that cannot underflow
            losses.append(greatest - p.amax(1, keepdim=True).log() - wanted)
            p.scatter_add_(1, target, p.new_full(target.shape, -1.0))
            p = p.to(head.dtype)
            torch.mm(p, head, out=hidden_grad[rows])
            head_grad.addmm_(p.t(), h)
        ctx.save_for_backward(hidden, head, targets, hidden_grad, head_grad)
        return torch.cat(losses).mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, head, targets, hidden_grad, head_grad = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: gradients that can be differentiated again
            loss = F.cross_entropy(F.linear(hidden, head), targets)
            again = torch.autograd.grad(loss, (hidden, head), grad, create_graph=True, allow_unused=True)
            return again[0], again[1], None
        factor = grad / len(hidden)
        return hidden_grad * factor, head_grad * factor, None
