"""The sections of a config, one class each: a section that is malformed cannot exist."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel as Model
from pydantic import (
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from llmnas.train.settings import changed

HARDWARE_METRICS = ("latency_ms", "prefill_latency_ms", "decode_latency_ms", "energy_j")
METRICS = (
    "val_loss", "perplexity", "bits_per_byte", "params", "active_params", "flops_per_token", "memory_bytes",
    *HARDWARE_METRICS,
)  # fmt: skip
"""What a search can be told to make small, great, or keep within bounds."""


class Strict(Model):
    """Frozen; unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HalvingConfig(Strict):
    """Successive halving of each batch: all candidates are run on `first` windows, the share `keep` of them goes on
    with 1 / `keep` times as many, and so on up to `search.sample`; the others are dropped and stored as such."""

    first: PositiveInt
    keep: float = Field(0.5, gt=0, lt=1)


class SearchConfig(Strict):
    """What is searched for and how; `windows` are the validation windows that define the loss (the default: at most
    so many, as the text has), `sample` those a candidate is run on.

    `recalibrate`: sequences of training text on which the statistics of every candidate (the biases that
    balance experts) are taken anew before it is judged; 0 judges it with the supernet's.
    `halving`: stop early what is hopeless in its batch; off by default.
    """

    strategy: str = "nsga2"
    objectives: dict[str, Literal["min", "max"]] = {"val_loss": "min", "params": "min"}
    constraints: dict[str, float | tuple[float | None, float | None]] = {}
    evaluations: PositiveInt = 200
    batch: PositiveInt = 8
    options: dict[str, Any] = {}
    windows: PositiveInt = 128
    sample: PositiveInt = 32
    recalibrate: NonNegativeInt = 0
    halving: HalvingConfig | None = None

    @model_validator(mode="after")
    def _enough(self) -> SearchConfig:
        if self.sample > self.windows and "sample" in changed(self):
            raise ValueError(
                f"search.sample = {self.sample}: a candidate cannot be run on more than the {self.windows} windows of "
                "search.windows that define the loss"
            )
        if self.sample < min(3, self.windows):
            raise ValueError(
                f"search.sample = {self.sample}: the error of a loss cannot be told from less than 3 of "
                f"{self.windows} windows, nor can candidates be compared without it; take 3 or more, or all"
            )
        return self

    @model_validator(mode="after")
    def _halves(self) -> SearchConfig:
        if self.halving is None:
            return self
        sample = min(self.sample, self.windows)
        if not {"val_loss", "perplexity", "bits_per_byte"} & set(self.objectives):
            raise ValueError(
                "search.halving compares candidates by their loss on few windows: make val_loss an objective"
            )
        if self.halving.first >= sample:
            raise ValueError(
                f"search.halving.first = {self.halving.first} must be less than the {sample} windows of a candidate"
            )
        if math.ceil(self.halving.keep * self.batch) >= self.batch:
            raise ValueError(
                f"search.halving.keep = {self.halving.keep} drops none of the {self.batch} candidates of a batch: "
                "lower it, or take a larger search.batch"
            )
        return self


class RetrainConfig(Strict):
    """Stand-alone training of the found architecture and of others of equal size.

    `train` overrides keys of the run's `train` section; `inherit` starts the found one from the
    supernet's weights instead of from scratch. `lr_grid`: peak learning rates that every network
    tries on one seed outside of the comparison; its best one goes to the paired `seeds`.
    `random_baseline`: random search that trains for real: so many architectures of the found size
    are drawn and trained alone on that same seed, and the best joins the comparison.
    `pruned`: networks cut out of the pretrained model of `train.init_from`, to compare with: by recipe down to
    `budget.max_params` (without one: to the found size), with the last layers dropped, the least important ones
    dropped (`depth`), or every layer equally narrower (`width`); or the found shape itself (`found_cut`), which has
    seen no more text than these, where one that inherits has. `original`: also train that model itself, uncut and
    without a teacher, on as many tokens as the found one has seen.
    """

    train: dict[str, Any] = {}
    seeds: PositiveInt = 3
    hand_designed: tuple[Literal["smollm2", "qwen3", "llama3", "smollm2_mlgru"], ...] = ("smollm2",)
    lr_grid: tuple[PositiveFloat, ...] = ()
    random_baseline: NonNegativeInt = 0
    inherit: bool = False
    pruned: tuple[Literal["found_cut", "last_layers", "depth", "width"], ...] = ()
    original: bool = False


class CorrelateConfig(Strict):
    """K architectures within `band` (relative) around `params`, trained stand-alone. All of them meet the budget;
    without `params` the band ends at its `max_params`, or lies around the middle network where there is none.

    `adapt` (overrides of `train`, for instance a few steps): also score every architecture by its loss
    after training it alone for that long from the supernet's weights, which undoes what sharing spoiled.
    `gradient_windows`: sequences of training text on which the networks' gradients are compared, each with the next
    one's; 0 leaves that out.
    """

    architectures: int = Field(24, ge=2)
    params: PositiveInt | None = None
    band: float = Field(0.1, gt=0, lt=1)
    train: dict[str, Any] = {}
    seeds: PositiveInt = 1
    adapt: dict[str, Any] = {}
    gradient_windows: NonNegativeInt = 16


class LadderConfig(Strict):
    """The depth ladder of `llmnas ladder`: the best subset of the supernet's layers for each of `depths` (default:
    all of the space).

    `evaluations`: subsets of one depth that are measured at most; `train` overrides keys of the run's `train` section
    for the same depths trained alone, with `seeds` seeds (0: none), each at the best learning rate of `lr_grid`.
    """

    depths: tuple[PositiveInt, ...] = ()
    evaluations: PositiveInt = 300
    train: dict[str, Any] = {}
    seeds: NonNegativeInt = 1
    lr_grid: tuple[PositiveFloat, ...] = ()

    @model_validator(mode="after")
    def _used(self) -> LadderConfig:
        if not self.seeds and (self.train or self.lr_grid):
            raise ValueError("ladder.train and ladder.lr_grid do nothing with ladder.seeds 0")
        return self


class SpeculateConfig(Strict):
    """Self-speculative decoding of `llmnas speculate`: `evaluations` sub-networks are tried as drafts on `prompts`
    texts, each of `prompt_tokens` tokens of validation text and `new_tokens` generated ones; `longest`: proposals of a
    round at most."""

    evaluations: PositiveInt = 100
    prompts: PositiveInt = 8
    prompt_tokens: PositiveInt = 32
    new_tokens: PositiveInt = 64
    longest: PositiveInt = 8


Device = Literal["this", "a100", "h100", "h200", "l4", "rtx4090"]


class HardwareConfig(Strict):
    """What latency and energy are those of; batch and context are those of `budget.workload`.

    `device`: this machine, or a known GPU, whose latency is an estimate (roofline). `method`: on this
    machine a block `table`, measured once, or to `measure` every candidate. `phase`: of `latency_ms`
    and `energy_j`. `seconds` to spend on the table; `correction`: networks measured to correct it.
    """

    device: Device = "this"
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
        idle = sorted(changed(self) - used)
        if idle:
            raise ValueError(f"hardware.{idle[0]} does nothing with device {self.device} and method {self.method}")
        if 0 < self.correction < 8:
            raise ValueError(f"hardware.correction must be 0 or at least 8 networks, got {self.correction}")
        return self

    def require_use(self, asked: set[str]) -> None:
        """Raise ValueError where no metric that is asked for needs the section, or one of its keys."""
        latencies = set(HARDWARE_METRICS) - {"energy_j"}
        if not asked & set(HARDWARE_METRICS):
            raise ValueError(
                f"hardware: no objective, constraint or target of extract needs it ({', '.join(HARDWARE_METRICS)})"
            )
        needs = dict.fromkeys(("method", "seconds", "correction"), latencies) | {"phase": {"latency_ms", "energy_j"}}
        for key in sorted(changed(self) & set(needs)):
            if not asked & needs[key]:
                raise ValueError(f"hardware.{key} does nothing without {' or '.join(sorted(needs[key]))}")


class CompareConfig(Strict):
    """Strategies that `llmnas compare` runs, each with `seeds` seeds and `evaluations` evaluations.

    The strategy of the `search` section takes that section's options, the others have their defaults.
    `yardstick`: evaluations of one more random search, of another seed, that the others are measured by; 0: none.
    """

    strategies: tuple[str, ...] = ("random", "evolution", "nsga2", "local", "bayes", "reinforce", "ofa", "mip")
    seeds: PositiveInt = 5
    evaluations: PositiveInt = 200
    yardstick: NonNegativeInt = 0


class ExtractConfig(Strict):
    """What `llmnas extract` takes out of one supernet: for every target (metric -> upper limits) the best network.

    `ofa`: `samples` random networks are measured, a `predictor` learns from them (a fifth is held out to judge it),
    and an evolution of `generations` times `population` searches its predictions. `mip`: every block is replaced in
    the largest network of at most `cells` widths, and an integer program chooses; `checks` random networks say
    whether block scores add up. `verify`: so many of the best predicted ones of each target are measured.
    """

    method: Literal["ofa", "mip"] = "ofa"
    targets: dict[str, tuple[PositiveFloat, ...]] = {}
    verify: PositiveInt = 4
    samples: int = Field(200, ge=10)
    predictor: Literal["gp", "ensemble"] = "gp"
    population: int = Field(128, ge=8)
    generations: PositiveInt = 20
    cells: PositiveInt = 8
    checks: int = Field(24, ge=3)

    @model_validator(mode="after")
    def _used(self) -> ExtractConfig:
        own = {"ofa": {"samples", "predictor", "population", "generations"}, "mip": {"cells", "checks"}}
        idle = sorted(changed(self) & set().union(*own.values()) - own[self.method])
        if idle:
            raise ValueError(f"extract.{idle[0]} does nothing with method {self.method}")
        empty = [name for name, limits in self.targets.items() if not limits or len(set(limits)) < len(limits)]
        if empty:
            raise ValueError(f"extract.targets.{empty[0]}: needs at least one limit and each once")
        return self


class TrackingConfig(Strict):
    """`wandb`: off, offline (no network), online, or auto: online in a W&B sweep, else offline where installed.

    The environment's WANDB_MODE goes before all of them but off. metrics.jsonl is always written.
    """

    wandb: Literal["auto", "off", "offline", "online"] = "auto"
    project: str = "llmnas"

    @field_validator("wandb", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads a bare `off` as false
