"""Checkpoints of DeepSpeed are read without ever executing a pickle."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from llmnas.errors import RunError


@contextlib.contextmanager
def no_pickle() -> Iterator[None]:
    """torch.load reads tensors and plain values only, whatever its caller asks for."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        # early Pythons 3.11 (seen: 3.11.2) write a member of an enum as getattr(its class, its name)
        stage = (_stage_of_zero, "builtins.getattr")
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address, stage]):
            yield
    finally:
        del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]


def _stage_of_zero(kind: Any, name: str) -> Any:
    """What `getattr` may do in a checkpoint: name a ZeRO stage, nothing else."""
    from deepspeed.runtime.zero.config import ZeroStageEnum

    if kind is not ZeroStageEnum or name not in ZeroStageEnum.__members__:
        raise RunError(f"a checkpoint asks for attribute {name!r} of {kind!r}: only ZeRO stages are read")
    return ZeroStageEnum[name]
