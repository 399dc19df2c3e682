"""Gradient buffers of ZeRO-3 that would leak from one optimizer step into the next.

DeepSpeed's stage 3 keeps one buffer a parameter for its share of the gradient. The first backward
pass of a step copies into it, the later ones add to it. A parameter that the first network of a
step does not use is never copied, so a later network of that step adds onto what the step BEFORE
left there; a parameter that no network uses keeps the old gradient and is updated with it again.
Both are silent (an update is off by several per cent). Zero buffers after every step make "copy"
and "add" the same thing, whatever is skipped.

The buffers have a private name; this file is the only one that knows it.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch

from llmnas.errors import RunError, UserError

VERIFIED = "0.19.8"
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
