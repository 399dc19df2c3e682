"""Which parameters decay, and the optimizer that every training uses."""

from __future__ import annotations

import torch
from torch import nn

from llmnas.train.settings import TrainSettings

DECAYED = 0
"""The group of matrices; the other one holds what never decays."""


def adamw(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019); matrices decay, gains, biases and embeddings do not."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        kind = name.rsplit(".", 1)[-1]
        exempt = kind.endswith(("norm", "bias")) or kind in {"embedding", "head", "lower"}
        (free if exempt else decayed).append(parameter)
    # in the order of DECAYED
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)
