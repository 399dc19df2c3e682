"""The knobs of training (no torch: a config is checked before anything heavy is loaded)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel as Model
from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

Decay = Annotated[float, Field(ge=0, lt=1)]


class _Strict(Model):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SamplerSettings(_Strict):
    """Which networks a step trains.

    Attributes:
        kind: `single` trains one network a step, the largest and the smallest in turn at
            every `anchor_every`-th; `uniform` trains `random` drawn networks a step;
            `sandwich` trains the largest, the smallest and `random` drawn ones.
        random: networks drawn a step (`single` draws one).
        anchor_every: see `single`; 0 never trains them on purpose.
        distribution: of the drawn parameter counts. `centred` is what drawing every
            decision uniformly gives; `uniform` is flat between the least and the most.
        largest: the largest network of the whole space, or of the budget.
    """

    kind: Literal["single", "uniform", "sandwich"] = "single"
    random: PositiveInt = 2
    anchor_every: NonNegativeInt = 4
    distribution: Literal["centred", "uniform"] = "centred"
    largest: Literal["space", "budget"] = "space"

    def networks_per_step(self) -> int:
        """How many networks one optimizer step trains."""
        return {"single": 1, "uniform": self.random, "sandwich": self.random + 2}[self.kind]


class DistillSettings(_Strict):
    """In-place distillation (Yu et al. 2020, BigNAS): the largest network teaches the others of its step.

    Attributes:
        weight: share of the teacher in the loss; 0 switches distillation off.
        top_k: how many of the teacher's most likely tokens are kept.
    """

    weight: float = Field(0.0, ge=0, le=1)
    top_k: PositiveInt = 32


class MoeSettings(_Strict):
    """How experts are kept busy; without effect in a space without experts.

    Attributes:
        balance: `loss` adds the load-balancing loss, `bias` moves a bias on the choice of experts instead.
        weight: of the balance loss.
        bias_rate: step of the bias, in units of a score.
        z_weight: of the routers' z-loss.
    """

    balance: Literal["loss", "bias", "none"] = "loss"
    weight: NonNegativeFloat = 0.01
    bias_rate: NonNegativeFloat = 1e-3
    z_weight: NonNegativeFloat = 1e-3


class TrainSettings(_Strict):
    """One training run, of a supernet or of one network.

    Attributes:
        steps: optimizer steps.
        batch_size: sequences a network sees in a step, over all processes.
        seq_len: tokens of a sequence.
        lr: peak learning rate (AdamW), after a linear warm-up over `warmup` of the steps,
            then a cosine down to `lr_floor` times the peak.
        weight_decay: decoupled; norm gains, biases, embedding and head are excluded.
        grad_clip: greatest global gradient norm.
        shared_batch: the networks of a step see the same batch instead of one each.
        document_mask: attention stays within documents.
        zero_stage: ZeRO stage 0, 1 or 2.
        dtype: fp32, or bf16 weights with an fp32 optimizer (GPUs).
        eval_every: steps between evaluations of the smallest, the largest and random networks.
        eval_sequences: validation sequences of each.
        save_every: steps between checkpoints; the last `keep` stay.
        threads: CPU threads a process; 0 shares the cores of the machine among the local processes.
    """

    steps: PositiveInt
    batch_size: PositiveInt = 8
    seq_len: PositiveInt = 256
    lr: PositiveFloat = 2e-3
    warmup: float = Field(0.05, ge=0, lt=1)
    lr_floor: float = Field(0.1, ge=0, le=1)
    weight_decay: NonNegativeFloat = 0.1
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    grad_clip: PositiveFloat = 1.0
    sampler: SamplerSettings = SamplerSettings()
    distill: DistillSettings = DistillSettings()
    moe: MoeSettings = MoeSettings()
    shared_batch: bool = False
    document_mask: bool = False
    zero_stage: Literal[0, 1, 2] = 0
    dtype: Literal["fp32", "bf16"] = "fp32"
    log_every: PositiveInt = 10
    eval_every: PositiveInt = 100
    eval_sequences: PositiveInt = 32
    save_every: PositiveInt = 200
    keep: PositiveInt = 2
    threads: NonNegativeInt = 0

    @model_validator(mode="after")
    def _teacher_is_there(self) -> Self:
        if self.distill.weight and (self.sampler.kind != "sandwich" or not self.shared_batch):
            raise ValueError(
                "distill.weight > 0 needs sampler.kind: sandwich (the largest network is the teacher) "
                "and shared_batch: true (it teaches on the tokens it has seen)"
            )
        return self
