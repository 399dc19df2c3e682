"""DeepSpeed, and nothing but DeepSpeed: the only importer of it.

Several networks make one optimizer step: N backward passes, then ONE `step()`, with
DeepSpeed's own management of gradient accumulation switched off. The managed mode with
N backward passes is silently wrong at ZeRO 1 and 2 (off by 0.09 in a weight after five
steps), which `tests/train/test_two_processes.py` measures against plain PyTorch.
"""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llmnas.errors import RunError, UserError
from llmnas.space import Architecture
from llmnas.supernet import Losses, Transformer
from llmnas.train.settings import TrainSettings

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import deepspeed
    from deepspeed.utils import logger as deepspeed_logger

deepspeed_logger.setLevel(logging.WARNING)


@dataclass(frozen=True)
class Processes:
    """This process among those of the launch."""

    rank: int
    size: int
    local_rank: int
    local_size: int


def start_processes() -> Processes:
    """Join the processes of a launcher, or be the only one.

    Without a launcher the one process meets itself in memory: no port, no network.
    """
    # a compiled op that saves nothing here and costs two minutes at the first launch
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if not dist.is_initialized() and "RANK" not in os.environ:
        os.environ.setdefault("LOCAL_RANK", "0")
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
    return Processes(
        rank=dist.get_rank(),
        size=dist.get_world_size(),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1"))),
    )


def set_threads(settings: TrainSettings, processes: Processes) -> None:
    """Share the cores of the machine among its processes: more threads than cores run slower than one."""
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(settings.threads or max(1, cores // processes.local_size))


class Engine:
    """A model under DeepSpeed: forward, backward, step, save, load."""

    def __init__(self, model: Transformer, settings: TrainSettings, processes: Processes) -> None:
        if settings.batch_size % processes.size:
            raise UserError(
                f"train.batch_size = {settings.batch_size} does not divide among {processes.size} processes: "
                f"use a multiple of {processes.size}"
            )
        self.processes = processes
        self.local_batch = settings.batch_size // processes.size
        self.zero_stage = settings.zero_stage
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=_optimizer(model, settings),
            config={
                "train_micro_batch_size_per_gpu": self.local_batch,
                "gradient_accumulation_steps": 1,
                "managed_gradient_accumulation": False,
                "gradient_clipping": settings.grad_clip,
                "zero_optimization": {"stage": settings.zero_stage},
                "bf16": {"enabled": settings.dtype == "bf16"},
                "steps_per_print": 1 << 60,
            },
        )
        self.device: torch.device = self._engine.device

    def forward(self, tokens: Tensor, arch: Architecture, **options: Any) -> Losses:
        """`Transformer.forward` with targets, inside DeepSpeed's hooks."""
        losses: Losses = self._engine(tokens, arch, **options)
        return losses

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one network of the step."""
        self._engine.backward(loss)

    def step(self, lr: float) -> None:
        """Clip, update, and clear the gradients.

        A parameter that no network of the step used gets a zero gradient (its moments
        and its weight decay go on): so do DeepSpeed's ZeRO stages, and stage 0 must agree.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        if self.zero_stage == 0:
            for parameter in self._engine.module.parameters():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        self._engine.step()

    def mean(self, value: Tensor) -> float:
        """Average a scalar over the processes."""
        total = value.detach().double().to(self.device)
        if self.processes.size > 1:
            dist.all_reduce(total)
        return float(total) / self.processes.size

    def average(self, values: Tensor) -> Tensor:
        """Mean of a tensor over the processes."""
        total = values.detach().clone()
        if self.processes.size > 1:
            dist.all_reduce(total)
        return total / self.processes.size

    def barrier(self) -> None:
        """Wait for every process."""
        if self.processes.size > 1:
            dist.barrier()

    def save(self, folder: Path, tag: str) -> None:
        """Write weights and optimizer of every process under `folder/tag`."""
        try:
            self._engine.save_checkpoint(str(folder), tag=tag, save_latest=False)
        except RuntimeError as error:  # torch's writer: a full disk is no OSError there
            raise RunError(f"{folder / tag}: the checkpoint cannot be written ({str(error).splitlines()[0]})") from None

    def load(self, folder: Path, tag: str) -> None:
        """Restore what `save` wrote, without ever executing a pickle (weights_only)."""
        from deepspeed.runtime.fp16.loss_scaler import LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
        try:
            with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
                self._engine.load_checkpoint(str(folder), tag=tag)
        finally:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]


def _optimizer(model: Transformer, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW; matrices decay, gains, biases and embeddings do not."""
    decayed: list[torch.nn.Parameter] = []
    free: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        kind = name.rsplit(".", 1)[-1]
        exempt = kind.endswith(("norm", "bias")) or kind in {"embedding", "head", "lower"}
        (free if exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)
