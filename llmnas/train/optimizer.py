"""Which parameters decay, which are matrices, and the optimizer that every training uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llmnas.nn.elastic_linear import ElasticLinear, ordered_parameters, role
from llmnas.nn.expert_linear import ExpertLinear
from llmnas.space import Architecture
from llmnas.supernet import Transformer, active_boxes
from llmnas.train.block_optimizer import BlockOptimizer, Matrix
from llmnas.train.expert_parallel import ExpertExchange, own_boxes
from llmnas.train.fragments import partitions, whole_weights
from llmnas.train.settings import TrainSettings

UNDECAYED = 1
"""The group of what never decays: gains, biases, embeddings; every other group decays."""


def build_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), or Muon for matrices and AdamW for the rest (`block_optimizer.py`).

    Matrices are what tokens are multiplied by: the heads of a layer are one matrix, as in a stock model, and every
    expert has its own. Routers and the gates of shared experts decay, but are no such matrices.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in ordered_parameters(model):
        kind = role(name)
        exempt = kind.endswith(("norm", "bias")) or kind in {"embedding", "head", "lower"}
        (free if exempt else decayed).append(parameter)
    decay = settings.weight_decay
    # in the order of UNDECAYED
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": decay},
        {"params": free, "weight_decay": 0.0},
    ]
    if settings.optimizer == "adamw" and settings.update == "all":
        return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)
    matrices = matrices_of(model) if settings.optimizer == "muon" else {}
    if settings.optimizer == "muon":
        muon = settings.muon
        groups[0] |= {
            "params": [parameter for parameter in decayed if parameter in matrices],
            "muon": True, "whole": muon.scope == "whole", "momentum": muon.momentum, "scale": muon.scale,
        }  # fmt: skip
        rest = [parameter for parameter in decayed if parameter not in matrices]
        groups += [{"params": rest, "weight_decay": decay}] if rest else []
    active = settings.update == "active"
    return BlockOptimizer(groups, lr=settings.lr, betas=settings.betas, active=active, matrices=matrices)


def locate(optimizer: torch.optim.Optimizer, model: nn.Module, zero: Any, stage: int) -> None:
    """Tell an optimizer that moves blocks where the weights lie in its tensors; `zero`: DeepSpeed's, above stage 0.

    Raises:
        RunError: DeepSpeed does not say.
    """
    if isinstance(optimizer, BlockOptimizer):
        optimizer.held = partitions(model, zero, stage) if stage else whole_weights(model)


def announce(
    optimizer: torch.optim.Optimizer, model: nn.Module, networks: Sequence[Architecture] | None,
    exchange: ExpertExchange | None,
) -> None:  # fmt: skip
    """Tell an optimizer that moves blocks what the coming step's networks use; None for one that uses every weight."""
    if not isinstance(optimizer, BlockOptimizer):
        return
    if networks is None or not isinstance(model, Transformer):
        optimizer.use(None)
        return
    boxes = active_boxes(model, networks)
    optimizer.use(boxes if exchange is None else own_boxes(model, boxes, exchange))


def flatten_moments(optimizer: torch.optim.Optimizer) -> None:
    """Bring moments of before linear layers were modules, on grids of four axes, into the shapes of their weights."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape != weight.shape and value.numel() == weight.numel():
                state[name] = value.view_as(weight)


def forget(optimizer: torch.optim.Optimizer) -> None:
    """Let go of moments and weights: some of DeepSpeed's classes hold an optimizer for ever."""
    optimizer.state.clear()
    if isinstance(optimizer, BlockOptimizer):
        optimizer.held = {}


def matrices_of(model: nn.Module) -> dict[Tensor, Matrix]:
    """Of every weight that tokens are multiplied by, how it is sliced."""
    found: dict[Tensor, Matrix] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, ElasticLinear) and role(name) not in {"router", "head"}:
            found[layer.weight] = Matrix(layer.grid, len(layer.rows))
        elif isinstance(layer, ExpertLinear):
            found[layer.weight] = Matrix(layer.weight.shape, 2)
    return found
