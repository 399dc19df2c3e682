"""Every knob of a run: sections that fit together, or none."""

from __future__ import annotations

from typing import Any

from pydantic import Field, NonNegativeInt, ValidationError, model_validator

from llmnas.config.sections import (
    CompareConfig,
    CorrelateConfig,
    DataConfig,
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
from llmnas.space import SearchSpace
from llmnas.space.restrict import restricted
from llmnas.train.settings import DartsSettings, TrainSettings


class Config(Strict):
    """One run from text to exported model."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
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
        if self.hardware:
            self.hardware.require_use({*self.search.objectives, *self.search.constraints})
        self.stage_settings("retrain", self.retrain.train)
        self.stage_settings("correlate", self.correlate.train)
        self.stage_settings("ladder", self.ladder.train)
        self.stage_settings("correlate", {**self.correlate.train, **self.correlate.adapt})
        return self

    def _check_only(self, darts: DartsSettings) -> None:
        try:
            restricted(self.space, darts.only)
        except ValueError as error:
            raise ValueError(f"darts.only: {error}") from None

    def stage_settings(self, stage: str, overrides: dict[str, Any]) -> TrainSettings:
        """The run's training settings with a stage's overrides, for one network at a time."""
        values = {**self.train.model_dump(exclude={"sampler", "distill", "shared_batch"}), **overrides}
        try:
            return TrainSettings.model_validate(values)
        except ValidationError as error:
            raise ValueError(str(explain(f"{stage}.train", error))) from None
