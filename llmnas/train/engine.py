"""DeepSpeed, and nothing but it: with `universal.py`, `state_files.py` and `no_pickle.py` the only importer of it.

Several networks make one optimizer step: N backward passes, then ONE `step()`, with
DeepSpeed's own management of gradient accumulation switched off. The managed mode with
N backward passes is silently wrong at ZeRO 1 and 2 (off by 0.09 in a weight after five
steps), which `tests/train/test_two_processes.py` measures against plain PyTorch. What stage 3
needs besides is in `stale.py`; docs/deepspeed.md tells the whole story.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmnas.errors import RunError
from llmnas.files import Written
from llmnas.nn.elastic_linear import ordered_parameters
from llmnas.space import Architecture, Shape
from llmnas.supernet import Losses, Transformer, fill_weights, load_weights
from llmnas.supernet.init import initialise
from llmnas.supernet.mixture import SoftArchitecture
from llmnas.train.deepspeed_json import deepspeed_config, shares
from llmnas.train.expert_parallel import (
    ExpertExchange,
    clip,
    divide,
    load_experts,
    require_divisible,
    require_parts,
    save_experts,
    unite,
)
from llmnas.train.no_pickle import no_pickle
from llmnas.train.optimizer import UNDECAYED, announce, build_optimizer, flatten_moments, forget, locate
from llmnas.train.processes import Processes, wait_for_all
from llmnas.train.settings import TrainSettings
from llmnas.train.stale import clear_stale_gradients, kept_whole, read_by_the_root, require_verified_version
from llmnas.train.state_files import StateFiles

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import deepspeed
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.utils import groups
    from deepspeed.utils import logger as deepspeed_logger

deepspeed_logger.setLevel(logging.WARNING)
# an optimizer of ours is tested here, with every stage
deepspeed_logger.addFilter(lambda record: "untested optimizer" not in record.getMessage())
_PLAIN_LINEAR = torch.nn.functional.linear
# the key without which DeepSpeed cannot convert a checkpoint for another number of processes
_CLIENT_STATE = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}


@dataclass(frozen=True)
class Step:
    """What an optimizer step did: whether the update was applied, and the gradient norm before clipping.

    The norm is infinite where a gradient was not finite; the update is then skipped on every rank.
    """

    applied: bool
    grad_norm: float


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
    try:
        deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
    except dist.DistError as error:  # of the store in which they meet
        reason = str(error).splitlines()[0]
        raise RunError(
            f"the processes of the launch did not come together ({reason}); see what the others say"
        ) from None
    if backend == "gloo":
        atexit.unregister(_leave)
        atexit.register(_leave)
    return Processes(
        rank=dist.get_rank(),
        size=dist.get_world_size(),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1"))),
    )


def _leave() -> None:
    """Leave the group before the interpreter ends: gloo's threads, found alive by then, would abort the process."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def gathered(parameters: list[nn.Parameter], *, write: bool = False) -> Iterator[None]:
    """The whole parameters on every rank while entered; with `write`, rank 0's values go back to all. Collective."""
    shared = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    with deepspeed.zero.GatheredParameters(shared, modifier_rank=0 if write else None, enabled=bool(shared)):
        yield


def build(
    shape: Shape, seed: int, settings: TrainSettings, processes: Processes, weights: Path | None = None
) -> Transformer:
    """The model with the initial weights of `seed` (or those of a file), which do not depend on the ZeRO stage.

    At stage 3 every process holds only its share from the start: blocks are built without values,
    partitioned as soon as each is there, then filled one parameter at a time. No process ever holds more
    than the largest module whole.
    """
    if settings.zero_stage < 3:
        return Transformer(shape, seed) if weights is None else load_weights(Transformer(shape, seed=None), weights)
    require_verified_version()
    with deepspeed.zero.Init(config_dict_or_path=deepspeed_config(settings, processes.size)):
        model = Transformer(shape, seed=None)
    if weights is None:
        initialise(model, model.envelope.depth, seed, opened=lambda weight: gathered([weight], write=True))
    else:
        fill_weights(model, weights, opened=lambda weight: gathered([weight], write=True))
    return model


class Engine:
    """A model under DeepSpeed: forward, backward, step, save, load."""

    def __init__(self, model: nn.Module, settings: TrainSettings, processes: Processes) -> None:
        self.processes = processes
        self.local_batch, self.micro_batch = shares(settings, processes.size)
        self.zero_stage = settings.zero_stage
        self.grad_clip = settings.grad_clip
        if self.zero_stage == 3:
            require_verified_version()
        config = deepspeed_config(settings, processes.size)
        self.module = model
        self._exchange = _divide_experts(model, settings.moe.expert_parallel, processes)
        self._optimizer = build_optimizer(model, settings)
        if self.zero_stage == 3:
            for module, weight in read_by_the_root(model):
                deepspeed.zero.register_external_parameter(module, weight)
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=self._optimizer, config=config)
        locate(self._optimizer, model, self._engine.optimizer, self.zero_stage)
        if self.zero_stage == 0:
            self._engine.enable_backward_allreduce = False  # `step` reduces, to look at the gradients in between
        self._files = StateFiles()
        self._engine.checkpoint_engine = self._files
        self.device: torch.device = self._engine.device

    def forward(self, tokens: Tensor, network: Architecture | SoftArchitecture, **options: Any) -> Losses:
        """`Transformer.forward` or `Mixture.forward` with targets, inside DeepSpeed's hooks."""
        losses: Losses = self._engine(tokens, network, **options)
        return losses

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch of one network of the step.

        A loss that is not finite makes every gradient NaN (0 * inf), so that `step` looks at
        gradients alone; a finite one is multiplied by exactly 1.
        """
        self._engine.backward(loss * (loss.detach() * 0 + 1))

    def step(self, lr: float, weight_decay: float, networks: Sequence[Architecture] | None = None) -> Step:
        """Clip, update, and clear the gradients; a gradient that is not finite anywhere skips the update everywhere.

        A parameter that no network of the step used gets a zero gradient: so do DeepSpeed's ZeRO stages, and stage 0
        must agree. With `update: all` its moments and its weight decay go on.

        Args:
            networks: those of the step; None for one that uses every weight.
        """
        for i, group in enumerate(self._engine.optimizer.param_groups):
            group["lr"] = lr
            group["weight_decay"] = 0.0 if i == UNDECAYED else weight_decay
        announce(self._optimizer, self.module, networks, self._exchange)
        if self.zero_stage == 0:
            return self._plain_step()
        self._engine.step()
        optimizer = self._engine.optimizer
        if self.zero_stage == 3:
            clear_stale_gradients(optimizer)
        if optimizer.overflow:
            return Step(applied=False, grad_norm=math.inf)
        return Step(applied=True, grad_norm=float(self._engine.get_global_grad_norm()))

    def _plain_step(self) -> Step:
        parameters = [parameter for _, parameter in ordered_parameters(self._engine.module)]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.processes.size > 1:
            # told of experts that differ, DeepSpeed averages theirs over the processes that hold the same
            self._engine.has_moe_layers = self._exchange is not None
            self._engine.buffered_allreduce_fallback()
            self._engine.has_moe_layers = False
        norm = float(clip(parameters, self.grad_clip, self._exchange))
        if not math.isfinite(norm):
            self._engine.module.zero_grad()
            return Step(applied=False, grad_norm=math.inf)
        self._engine.step()
        return Step(applied=True, grad_norm=norm)

    @property
    def everyone_runs(self) -> bool:
        """Whether a forward is collective: weights are gathered, or tokens sent to experts elsewhere."""
        return self.zero_stage == 3 or self._exchange is not None

    def mean(self, value: Tensor) -> float:
        """Average a scalar over the processes."""
        return float(self.means(value.reshape(1))[0])

    def means(self, values: Tensor) -> Tensor:
        """Average [n] values over the processes, float64."""
        total = values.detach().double().to(self.device)
        if self.processes.size > 1:
            dist.all_reduce(total)
        return total / self.processes.size

    def average(self, values: Tensor) -> Tensor:
        """Mean of a tensor over the processes."""
        total = values.detach().clone()
        if self.processes.size > 1:
            dist.all_reduce(total)
        return total / self.processes.size

    def barrier(self) -> None:
        """Wait for every process."""
        wait_for_all(self.processes)

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """What `Transformer.hidden_states` may be called in; collective at stage 3, free below.

        Layers gather themselves when they are called; what the root reads (embedding, head, final norm) is gathered
        here, since no hook of the root runs, and kept when the embedding's own forward would let go of it.
        """
        root = [weight for name, weight in self.module.named_parameters() if "layers." not in name]
        with gathered(root), kept_whole(root):
            yield

    @torch.no_grad()
    def release(self) -> None:
        """Take DeepSpeed off the model, with gradients and moments. At stage 3 the weights become whole again on rank 0
        (in main memory, one parameter gathered at a time) and stay empty elsewhere; collective."""
        if self._exchange is not None:
            unite(self.module, self._exchange)
        whole: dict[str, Tensor] = {}
        for name, parameter in self.module.named_parameters() if self.zero_stage == 3 else ():
            with gathered([parameter]):
                if self.processes.rank == 0:
                    whole[name] = parameter.detach().cpu().clone()
        self._engine.destroy()
        forget(self._optimizer)
        # hooks hold the engine for as long as the model is held
        self._engine.module_forward_pre_hook.remove()
        self._engine.module_forward_post_hook.remove()
        del self._engine
        if self.zero_stage == 3:
            # stage 3 replaces it for the whole process: other rounding for every network that comes after
            torch.nn.functional.linear = _PLAIN_LINEAR
            self._make_whole(whole)
        gc.collect()  # an engine is full of cycles

    def _make_whole(self, weights: dict[str, Tensor]) -> None:
        parameter_offload.FWD_MODULE_STACK.clear()  # it would hold the model for as long as the process lives
        for path, module in self.module.named_modules():
            own = dict(module._parameters)
            module._parameters = {}  # DeepSpeed's dictionary gathers what it hands out
            vars(module).pop("_original_parameters", None)
            for name, old in own.items():
                key = f"{path}.{name}" if path else name
                new = None if old is None else nn.Parameter(weights.get(key, torch.empty(0)))
                module.register_parameter(name, new)

    def save(self, folder: Path, tag: str) -> list[Written]:
        """Write weights and optimizer of every process under `folder/tag`; returns this process's files. Collective.

        Raises:
            OSError: a file cannot be written; names it.
        """
        self._files.begin()
        self._engine.save_checkpoint(str(folder), tag=tag, client_state=_CLIENT_STATE, save_latest=False)
        if self._exchange is not None and self.processes.rank < self._exchange.size:
            save_experts(self.module, self._engine.optimizer, self._exchange, folder / tag, self._files.written.append)
        return self._files.written

    def load(self, folder: Path, tag: str, *, universal: bool = False) -> None:
        """Restore what `save` wrote (or `universal.convert` made of it), without ever executing a pickle."""
        require_parts(folder / tag, self._exchange.size if self._exchange else 1)
        decays = [group["weight_decay"] for group in self._engine.optimizer.param_groups]
        self._engine._config.load_universal_checkpoint = universal
        with no_pickle():
            self._engine.load_checkpoint(str(folder), tag=tag)
        self._engine._config.load_universal_checkpoint = False
        # DeepSpeed's universal load at stage 3 gives every group the settings of the first, and all groups one
        # tensor as their step counter, which each of them would then increase
        if universal:
            for state in self._engine.optimizer.optimizer.state.values():
                state["step"] = state["step"].clone()
        for group, decay in zip(self._engine.optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        flatten_moments(self._optimizer)
        if self._exchange is not None:
            load_experts(self.module, self._engine.optimizer, self._exchange, folder / tag)


def _divide_experts(model: nn.Module, size: int, processes: Processes) -> ExpertExchange | None:
    """Groups of `size` processes that hold the experts together, made by DeepSpeed; None where everyone holds all.

    Raises:
        UserError: a size that does not divide the processes, or experts that it does not divide.
    """
    if size == 1:
        return None
    require_divisible(model, size, processes.size)
    name = f"ep_size_{size}"
    if name not in groups._get_expert_parallel_group_dict():
        groups._create_expert_and_data_parallel(size)
    exchange = ExpertExchange(groups._get_expert_parallel_group(name), processes.rank % size, size)
    divide(model, exchange, name)
    return exchange
