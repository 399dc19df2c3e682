"""DeepSpeed's JSON under our own keys: what a cluster needs tuned, but nothing that llmnas decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmnas.errors import UserError
from llmnas.files import read_object
from llmnas.files.shipped import here_or_shipped
from llmnas.train.settings import TrainSettings

# llmnas writes these; the value says which of its knobs decides them
_OURS = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.micro_batch",
    "managed_gradient_accumulation": "no knob: N backward passes, one step",
    "gradient_clipping": "train.grad_clip",
    "bf16": "train.dtype",
    "fp16": "train.dtype",
    "data_types": "train.dtype",
    "optimizer": "train.optimizer, train.update, train.lr, train.betas, train.weight_decay",
    "scheduler": "train.warmup, train.lr_floor",
    "checkpoint": "train.save_every",
    "activation_checkpointing": "train.checkpoint_blocks",
    "steps_per_print": "train.log_every",
}
# verified against plain PyTorch; anything else in the zero section is refused
_SWITCHES = {
    "overlap_comm", "contiguous_gradients", "reduce_scatter", "allgather_partitions", "round_robin_gradients",
    "stage3_gather_16bit_weights_on_model_save",
}  # fmt: skip
_SIZES = {  # the smallest that DeepSpeed takes
    "reduce_bucket_size": 1, "allgather_bucket_size": 2, "sub_group_size": 1, "stage3_prefetch_bucket_size": 0,
    "stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0,
}  # fmt: skip
_OFFLOADS = {"offload_optimizer", "offload_param"}
_ZERO_KEYS = {"stage", *_SWITCHES, *_SIZES, *_OFFLOADS}


def shares(settings: TrainSettings, processes: int) -> tuple[int, int]:
    """Sequences of a network's batch that a process takes, and of them those it runs at once.

    Raises:
        UserError: a batch or a micro-batch that does not divide.
    """
    if settings.batch_size % processes:
        raise UserError(
            f"train.batch_size = {settings.batch_size} does not divide among {processes} processes: "
            f"use a multiple of {processes}"
        )
    share = settings.batch_size // processes
    at_once = settings.micro_batch or share
    if share % at_once:
        raise UserError(
            f"train.micro_batch = {settings.micro_batch} does not divide a process's share of the batch "
            f"({settings.batch_size} / {processes} = {share})"
        )
    return share, at_once


def deepspeed_config(settings: TrainSettings, processes: int) -> dict[str, Any]:
    """The whole config for `deepspeed.initialize`: the file of `train.deepspeed`, then our keys.

    Raises:
        UserError: a key of the file that llmnas decides or nobody has verified, a value of the wrong type, a
            combination that is not right, or what `shares` refuses.
    """
    config = _read(here_or_shipped(Path(settings.deepspeed)), settings) if settings.deepspeed else {}
    zero = {**config.get("zero_optimization", {}), "stage": settings.zero_stage}
    if settings.zero_stage == 3:
        # layers are skipped at random, so what DeepSpeed would fetch ahead is often not what comes next
        zero = {"stage3_prefetch_bucket_size": 0, **zero}
    bf16 = settings.dtype == "bf16"
    return {
        **config,
        "train_micro_batch_size_per_gpu": shares(settings, processes)[1],
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        # stage 0 clips in our own step, which has to see the norm
        "gradient_clipping": settings.grad_clip if settings.zero_stage else 0.0,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        # ours are no class that DeepSpeed knows
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": bf16},
        # several networks add up in one step: bf16 sums would lose the small ones
        **({"data_types": {"grad_accum_dtype": "fp32"}} if bf16 else {}),
        "steps_per_print": 1 << 60,
    }


def _read(path: Path, settings: TrainSettings) -> dict[str, Any]:
    config = read_object(path)
    for key, knob in _OURS.items():
        if key in config:
            raise UserError(f"{path}: {key} is decided by llmnas ({knob}); remove it")
    for key in sorted(config.keys() - {"zero_optimization"}):  # torch_autocast and others train something else
        raise UserError(f"{path}: {key}: not verified here; allowed: zero_optimization")
    zero = config.get("zero_optimization", {})
    _require_values(f"{path}: zero_optimization", zero)
    if zero.get("stage", settings.zero_stage) != settings.zero_stage:
        raise UserError(
            f"{path}: zero_optimization.stage = {zero['stage']}, but train.zero_stage = {settings.zero_stage}; "
            "make them equal"
        )
    if zero.get("overlap_comm") and settings.zero_stage < 2:
        raise UserError(f"{path}: zero_optimization.overlap_comm needs stage 2 or 3 (several backward passes a step)")
    if zero.get("stage3_prefetch_bucket_size"):
        raise UserError(
            f"{path}: zero_optimization.stage3_prefetch_bucket_size must be 0: layers are skipped at random"
        )
    for section in sorted(_OFFLOADS):
        if zero.get(section, {}).get("device") == "cpu" and settings.zero_stage < 3:
            raise UserError(f"{path}: zero_optimization.{section} needs train.zero_stage = 3")
    return config


def _require_values(where: str, zero: Any) -> None:
    """Only verified keys, each with a value of its type: DeepSpeed itself would look after the data are prepared."""
    _require_keys(where, zero, _ZERO_KEYS)
    for key, value in zero.items():
        if key in _SWITCHES and not isinstance(value, bool):
            raise UserError(f"{where}.{key} = {value!r}: must be true or false")
        if key in _SIZES and not (_whole(value) and value >= _SIZES[key]):
            raise UserError(f"{where}.{key} = {value!r}: must be a whole number, at least {_SIZES[key]}")
        if key == "allgather_bucket_size" and value % 2:
            raise UserError(f"{where}.{key} = {value!r}: must be even")
        if key in _OFFLOADS:
            _require_offload(f"{where}.{key}", value)


def _require_offload(where: str, section: Any) -> None:
    _require_keys(where, section, {"device", "pin_memory"})
    if section.get("device", "none") not in ("none", "cpu"):
        raise UserError(f"{where}.device = {section['device']!r}: only none and cpu are verified")
    if not isinstance(section.get("pin_memory", False), bool):
        raise UserError(f"{where}.pin_memory = {section['pin_memory']!r}: must be true or false")


def _require_keys(where: str, section: Any, allowed: set[str]) -> None:
    if not isinstance(section, dict):
        raise UserError(f"{where}: must hold a JSON object, found {section!r}")
    for key in sorted(section.keys() - allowed):
        raise UserError(f"{where}.{key}: not verified here; allowed: {sorted(allowed)}")


def _whole(value: Any) -> bool:
    """Whether a value of JSON is a whole number; 5e8 is, true is not."""
    return type(value) is int or (isinstance(value, float) and value.is_integer())
