"""Every knob of a run: sections that fit together, or none."""

from __future__ import annotations

from typing import Any

from pydantic import Field, NonNegativeInt, ValidationError, model_validator

from llmnas.config.data import DataConfig
from llmnas.config.sections import (
    CompareConfig,
    CorrelateConfig,
    ExtractConfig,
    HardwareConfig,
    LadderConfig,
    RetrainConfig,
    SearchConfig,
    SpeculateConfig,
    Strict,
    TrackingConfig,
)  # fmt: skip
from llmnas.cost import Budget
from llmnas.errors import explain
from llmnas.space import BaseModel, SearchSpace
from llmnas.space.restrict import restricted
from llmnas.train.darts_settings import DartsSettings
from llmnas.train.settings import TrainSettings, changed

_OF_THE_SUPERNET = {"update", "sampler", "distill", "shared_batch", "init_from", "calibration", "correction"}
"""Settings of `train` that later trainings of one network do not take over."""

_BF16_ROW = 8  # values in 16 bytes: `grouped_mm` takes no other strides; the space itself asks for float32's 4


class Config(Strict):
    """One run from text to exported model."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")
    seed: NonNegativeInt = 0
    data: DataConfig = DataConfig()
    space: SearchSpace
    budget: Budget = Budget()
    train: TrainSettings
    darts: DartsSettings | None = None
    search: SearchConfig = SearchConfig()
    retrain: RetrainConfig = RetrainConfig()
    correlate: CorrelateConfig = CorrelateConfig()
    ladder: LadderConfig = LadderConfig()
    speculate: SpeculateConfig = SpeculateConfig()
    hardware: HardwareConfig | None = None
    compare: CompareConfig = CompareConfig()
    extract: ExtractConfig = ExtractConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.train.seq_len > self.space.base.max_seq:
            raise ValueError(
                f"train.seq_len = {self.train.seq_len} is longer than space.base.max_seq = {self.space.base.max_seq}"
            )
        biased = self.train.moe.balance == "bias" and max(self.space.experts.choices) > 1
        if self.search.recalibrate and not biased:
            raise ValueError(
                "search.recalibrate does nothing: nothing holds statistics (experts with train.moe.balance: bias would)"
            )
        if self.darts:
            self._check_only(self.darts)
            if self.data.loss_on != "all":
                raise ValueError("data.loss_on: completions is not for darts, which learns from every token")
        if self.hardware:
            self.hardware.require_use({*self.search.objectives, *self.search.constraints, *self.extract.targets})
        stages = {"retrain": self.retrain.train, "correlate": self.correlate.train, "ladder": self.ladder.train}
        trainings = {"train": self.train} | {name: self.stage_settings(name, own) for name, own in stages.items()}
        self._experts_fit(trainings)
        self._pretrained_fits(trainings)
        self.stage_settings("correlate", {**self.correlate.train, **self.correlate.adapt})
        return self

    def _experts_fit(self, trainings: dict[str, TrainSettings]) -> None:
        space, most = self.space, max(self.space.experts.choices)
        alone = "space.experts is [1], so there is no router"
        for name in ("router", "norm_top_k", "shared_gate"):
            idle = most == 1 or (name == "shared_gate" and max(space.shared_experts.choices) == 0)
            if idle and getattr(space.base, name) != getattr(BaseModel, name):
                raise ValueError(
                    f"space.base.{name} does nothing: {alone if most == 1 else 'space.shared_experts is [0]'}"
                )
        uneven = [size for size in (*space.hidden_size, *space.ffn_size.choices) if size % _BF16_ROW]
        for stage, settings in trainings.items():
            where = stage if stage == "train" else f"{stage}.train"
            if most == 1 and (knobs := sorted(changed(settings.moe))):
                raise ValueError(f"{where}.moe.{knobs[0]} does nothing: {alone}")
            if most > 1 and uneven and settings.dtype == "bf16":
                raise ValueError(
                    f"{where}.dtype: with experts in bf16 every hidden_size and ffn_size must be a multiple of "
                    f"{_BF16_ROW} (rows of 16 bytes), got {uneven}"
                )

    def _pretrained_fits(self, trainings: dict[str, TrainSettings]) -> None:
        for key in ("pruned", "original"):
            if getattr(self.retrain, key) and not self.train.init_from:
                raise ValueError(f"retrain.{key} needs train.init_from, the pretrained model")
        if self.train.init_from and not self.data.tokenizer:
            raise ValueError(
                f"train.init_from needs the model's own tokenizer: set data.tokenizer to {self.train.init_from}"
            )
        for name in ("retrain", "correlate", "ladder"):
            if trainings[name].init_from:
                raise ValueError(f"{name}.train.init_from: only the supernet starts from a pretrained model")
        for name, settings in trainings.items():
            if settings.distill.source == "original" and not self.train.init_from:
                raise ValueError(f"{name}: distill.source: original needs train.init_from, the model that teaches")
        if (
            trainings["correlate"].distill.blocks
            or trainings["ladder"].distill.blocks
            or (trainings["retrain"].distill.blocks and self._foreign())
        ):
            raise ValueError(
                "distill.blocks compares networks that were cut out of the supernet, layer by layer: with it set "
                "retrain.inherit: true, retrain.hand_designed: [] and retrain.random_baseline: 0"
            )

    def _foreign(self) -> bool:
        """Whether retraining trains networks whose channels are not those of the supernet."""
        return bool(self.retrain.hand_designed or self.retrain.random_baseline or not self.retrain.inherit)

    def _check_only(self, darts: DartsSettings) -> None:
        try:
            restricted(self.space, darts.only)
        except ValueError as error:
            raise ValueError(f"darts.only: {error}") from None

    def stage_settings(self, stage: str, overrides: dict[str, Any]) -> TrainSettings:
        """The run's training settings with a stage's overrides, for one network at a time."""
        values = {**self.train.model_dump(exclude=_OF_THE_SUPERNET), **overrides}
        try:
            return TrainSettings.model_validate(values)
        except ValidationError as error:
            raise ValueError(str(explain(f"{stage}.train", error, TrainSettings))) from None
