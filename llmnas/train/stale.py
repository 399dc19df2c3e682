"""What stage 3 of DeepSpeed needs besides: weights that a root reads, and gradient buffers that must not leak.

DeepSpeed's stage 3 keeps one buffer a parameter for its share of the gradient. The first backward
pass of a step copies into it, the later ones add to it. A parameter that the first network of a
step does not use is never copied, so a later network of that step adds onto what the step BEFORE
left there; a parameter that no network uses keeps the old gradient and is updated with it again.
Both are silent (an update is off by several per cent). Zero buffers after every step make "copy"
and "add" the same thing, whatever is skipped.

The buffers have a private name; this file is the only one that knows it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from llmnas.errors import RunError, UserError
from llmnas.supernet import Transformer

VERIFIED = "0.19.8"
_NO_MODULE = -1  # DeepSpeed numbers modules from 0
_BUFFERS = "_DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition"


def require_verified_version(found: str | None = None) -> None:
    """Refuse ZeRO-3 with a DeepSpeed whose buffers nobody has looked at.

    Raises:
        UserError: another version than the verified one.
    """
    found = found or version("deepspeed")
    if found != VERIFIED:
        raise UserError(
            f"train.zero_stage = 3 is verified with deepspeed {VERIFIED}, found {found} (its gradient buffers are "
            f"private): pip install deepspeed=={VERIFIED}, or use stage 0, 1 or 2"
        )


def clear_stale_gradients(optimizer: Any) -> None:
    """Zero every gradient buffer of DeepSpeed's stage 3 optimizer; call it after each step.

    With an offloaded optimizer the copies in main memory are cleared as well: DeepSpeed
    refreshes only those of parameters that took part in the step.

    Raises:
        RunError: the buffers are not where the verified version keeps them.
    """
    buffers = list(vars(optimizer).get(_BUFFERS, {}).values())
    if not buffers:
        raise RunError(f"deepspeed {version('deepspeed')}: no gradient buffers at {_BUFFERS}; ZeRO-3 would be wrong")
    torch._foreach_zero_(buffers)
    if optimizer.offload_optimizer:
        for flat in optimizer.fp32_partitioned_groups_flat:
            if flat.grad is not None:
                flat.grad.zero_()


def read_by_the_root(model: nn.Module) -> list[tuple[nn.Module, Tensor]]:
    """Weights of layers that their root reads in its own forward, with the root: logits are formed with the loss."""
    roots = [module for module in model.modules() if isinstance(module, Transformer)]
    return [(root, layer.weight) for root in roots for layer in (root.embedding, root.head) if layer is not None]


@contextlib.contextmanager
def kept_whole(weights: Sequence[Tensor]) -> Iterator[None]:
    """Weights that are gathered stay so while entered, also when the forward of their own layer ends."""
    users: list[set[int]] = [vars(weight)["ds_active_sub_modules"] for weight in weights if hasattr(weight, "ds_id")]
    for user in users:
        user.add(_NO_MODULE)
    try:
        yield
    finally:
        for user in users:
            user.discard(_NO_MODULE)
