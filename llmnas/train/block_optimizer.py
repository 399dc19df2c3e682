"""AdamW and Muon that move what the networks of a step use and leave the rest of every weight alone.

The contract `active`, for every element of every weight. In a step of which a network uses it, AdamW's moments and
update, weight decay included, are those of the usual formula with the element's gradient (which may be zero: an expert
without tokens is used, and so is the embedding of a word that does not occur). In any other step weight and moments
stay as they are, to the bit. The bias correction counts all steps of the training, not those that used the element:
one number for every tensor, flat partition and checkpoint (DeepSpeed's universal form knows no other). An element that
is used late begins with smaller steps instead of whole ones, 0.45 of the learning rate with the usual betas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from llmnas.supernet import Box, hull
from llmnas.train.fragments import Held, View, views
from llmnas.train.newton_schulz import orthogonalise

_CHUNK = 1 << 22  # elements that are copied at once, four numbers of each: 64 MiB
_MOMENTS = ("exp_avg", "exp_avg_sq")
Boxes = Mapping[str, tuple[Box, ...]]


class Matrix(NamedTuple):
    """The shape in which a weight [N, K] or that of experts [E, N, K] is sliced; how many of its axes are outputs."""

    grid: torch.Size
    outputs: int


class BlockOptimizer(torch.optim.Optimizer):
    """AdamW, or Muon in the groups that have `muon` set; what it moves is said before every step.

    Muon (Jordan et al. 2024): the momentum m <- mu m + (1 - mu) g, looked ahead once more (Nesterov), made orthogonal,
    times `scale` sqrt(max(rows, columns)) of the matrix that is moved, which gives an update the mean square of
    AdamW's (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2, scale 0.2); decoupled decay.

    Args:
        groups: with `params`, `weight_decay`, and of Muon `muon`, `whole`, `momentum` and `scale`.
        active: AdamW moves what is used, instead of all with zero gradients.
        matrices: how Muon's weights are sliced.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], active: bool,
        matrices: Mapping[Tensor, Matrix],
    ) -> None:  # fmt: skip
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": 1e-8, "weight_decay": 0.0, "muon": False})
        self.held: Held = {}
        self.boxes: Boxes | None = None
        self._active, self._matrices = active, matrices

    def use(self, boxes: Boxes | None) -> None:
        """What the networks of the coming step use of every weight, by its name; None for everything."""
        self.boxes = boxes

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 (torch's signature)
        """Move the tensors of all groups that have a gradient."""
        for group in self.param_groups:
            tensors = [tensor for tensor in group["params"] if tensor.grad is not None]
            (self._muon if group["muon"] else self._adamw)(group, tensors)

    def _adamw(self, group: dict[str, Any], tensors: list[Tensor]) -> None:
        chunk = _Chunk(group)
        everything = self.boxes is None or not self._active
        for tensor in tensors:
            state = self.state[tensor]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=tensor.device)
                state |= {name: torch.zeros_like(tensor) for name in _MOMENTS}
            for view in (None,) if everything else views(self.held[tensor], self.boxes, at_most=_CHUNK):
                chunk.add(tensor, state, view)
                if chunk.copied >= _CHUNK:
                    chunk.apply()
                    chunk = _Chunk(group)
        chunk.apply()
        for tensor in tensors:
            self.state[tensor]["step"] += 1

    def _muon(self, group: dict[str, Any], tensors: list[Tensor]) -> None:
        momentum, rate = group["momentum"], group["lr"]
        ahead: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for tensor in tensors:
            state = self.state[tensor]
            if not state:
                state["momentum"] = torch.zeros_like(tensor)
            block = self._moved(group, tensor)
            if block is None:
                continue
            grid, outputs = self._matrices[tensor]
            target, gradient, before = (x.view(grid)[block] for x in (tensor, tensor.grad, state["momentum"]))  # type: ignore[union-attr]
            before.lerp_(gradient, 1 - momentum)
            ahead_of = gradient.lerp(before, momentum).flatten(outputs).flatten(tensor.dim() - 2, outputs - 1)
            matrices = ahead_of if tensor.dim() == 3 else ahead_of[None]
            ahead.setdefault(tuple(matrices.shape[1:]), []).append((target, matrices))
        for (rows, columns), found in ahead.items():  # equal sizes at once
            stacked = torch.cat([matrices for _, matrices in found])
            updates = torch.split(orthogonalise(stacked), [len(matrices) for _, matrices in found])
            for (target, _), update in zip(found, updates, strict=True):
                target.mul_(1 - rate * group["weight_decay"])
                target.add_(update.reshape(target.shape), alpha=-rate * group["scale"] * math.sqrt(max(rows, columns)))

    def _moved(self, group: dict[str, Any], tensor: Tensor) -> tuple[slice, ...] | None:
        """The leading block of a weight that Muon moves; None for a weight that no network of the step uses.

        Scope `slice`: the smallest one in which all lies that the networks use. `whole`: all rows and columns, of the
        matrices (experts) among which one is used.
        """
        if self.boxes is None:
            return ()
        (fragment,) = self.held[tensor]
        boxes = self.boxes.get(fragment.name)
        if not boxes:
            return None
        block = tuple(slice(*edges) for edges in hull(boxes))
        return block[: tensor.dim() - 2] if group["whole"] else block


class _Chunk:
    """Parts of tensors that one call of torch's fused AdamW moves; strided ones, which it cannot read, are copied.

    Attributes:
        copied: elements of parts that are copied.
    """

    def __init__(self, group: dict[str, Any]) -> None:
        self._group = group
        self._moved: list[list[Tensor]] = [[], [], [], []]  # weights, gradients, both moments
        self._counts: list[Tensor] = []
        self._copies: list[tuple[Tensor, Tensor]] = []
        self.copied = 0

    def add(self, tensor: Tensor, state: dict[str, Any], view: View | None) -> None:
        """A part of a tensor, or all of it."""
        for i, whole in enumerate((tensor, tensor.grad, *(state[name] for name in _MOMENTS))):
            part = whole if view is None else _part(whole, view)
            compact = part.contiguous()
            if compact is not part:
                self._copies += [(part, compact)] if i != 1 else []
                self.copied += part.numel() if i == 0 else 0
            self._moved[i].append(compact)
        self._counts.append(state["step"].clone())  # torch adds one to each

    def apply(self) -> None:
        """Move them."""
        if not self._counts:
            return
        beta1, beta2 = self._group["betas"]
        weights, gradients, means, squares = self._moved
        adamw(
            weights, gradients, means, squares, [], self._counts,
            fused=True, amsgrad=False, maximize=False, beta1=beta1, beta2=beta2, lr=self._group["lr"],
            weight_decay=self._group["weight_decay"], eps=self._group["eps"],
        )  # fmt: skip
        for part, compact in self._copies:
            part.copy_(compact)


def _part(whole: Tensor, view: View) -> Tensor:
    flat = whole.reshape(-1)
    return flat.as_strided(view.size, view.stride, flat.storage_offset() + view.offset)
