"""The knobs of training (no torch: a config is checked before anything heavy is loaded)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from llmnas.files import PathText
from llmnas.train.numbers import Decay, Strict, ThreadCount, changed

__all__ = ["OPERATION", "UNMARKED", "WATCHING", "Strict", "TrainSettings", "changed"]
WATCHING = ("log_every", "eval_every", "eval_sequences", "save_every", "keep", "patience_minutes")
"""Settings that look at a training and leave its result as it is."""
UNMARKED = ("patience_minutes", "on_divergence", "rewind_lr")
"""Settings that no identity of a run has ever counted."""
OPERATION = (
    *WATCHING, "threads", "micro_batch", "checkpoint_blocks", "skip_limit", "on_divergence", "rewind_lr",
)  # fmt: skip
"""Settings of how a training is run, which a run that goes on may change: they move its result by rounding at most."""


class Phase(Strict):
    """From step `start` on, the dimensions in `open` vary too (`hidden_size`, `depth`, or one of a layer's)."""

    start: NonNegativeInt
    open: tuple[str, ...] = Field(min_length=1)


class PathDropout(Strict):
    """Layers of drawn networks are dropped, the last with probability `rate`, which is reached after `ramp` steps."""

    rate: float = Field(gt=0, lt=1)
    ramp: NonNegativeInt = 0


class Attentive(Strict):
    """Of `pool` networks drawn from one band of parameters the one predicted best or worst is trained.

    Attributes:
        pick: `best` or `worst`.
        forget: weight of a training loss in the prediction one network later.
        start: networks trained before predictions are trusted.
    """

    pick: Literal["best", "worst"]
    pool: int = Field(4, ge=2)
    forget: float = Field(0.99, gt=0, le=1)
    start: PositiveInt = 64


class SamplerSettings(Strict):
    """Which networks a step trains.

    Attributes:
        kind: `single` trains one network a step, the largest and the smallest in turn at
            every `anchor_every`-th; `uniform` trains `random` drawn networks a step;
            `sandwich` trains the largest, the smallest and `random` drawn ones; `progressive` is
            `single` on a space that opens dimension by dimension (`phases`); `fair` trains `random`
            networks a step such that every choice is trained equally often (`train/fair.py`).
        random: networks drawn a step (`single` draws one).
        anchor_every: see `single`; 0 never trains them on purpose.
        distribution: of the drawn parameter counts. `centred` is what drawing every
            decision uniformly gives; `uniform` is flat between the least and the most.
        largest: the largest network of the whole space, or of the budget.
        phases: of `progressive` shrinking (Cai et al. 2020): a dimension that no phase has opened yet keeps
            what the largest network has.
        path_dropout: of drawn networks (`train/path_dropout.py`).
        attentive: which of several drawn networks is trained (`train/attentive.py`).
    """

    kind: Literal["single", "uniform", "sandwich", "progressive", "fair"] = "single"
    random: PositiveInt = 2
    anchor_every: NonNegativeInt = 4
    distribution: Literal["centred", "uniform"] = "centred"
    largest: Literal["space", "budget"] = "space"
    phases: tuple[Phase, ...] = ()
    path_dropout: PathDropout | None = None
    attentive: Attentive | None = None

    @model_validator(mode="after")
    def _what_is_given_is_used(self) -> Self:
        given = changed(self)
        if self.kind == "fair" and (idle := given & {"distribution", "anchor_every", "path_dropout", "attentive"}):
            raise ValueError(f"{min(idle)} does nothing with kind: fair, which leaves nothing to chance")
        if self.kind in ("uniform", "sandwich") and "anchor_every" in given:
            raise ValueError(f"anchor_every does nothing with kind: {self.kind}; it is of kind: single and progressive")
        if self.kind in ("single", "progressive") and "random" in given:
            raise ValueError(f"random does nothing with kind: {self.kind}, which trains one network a step")
        if self.kind == "progressive" and (self.path_dropout or self.attentive):
            raise ValueError("kind: progressive takes neither path_dropout nor attentive")
        if self.attentive and self.distribution != "uniform":
            raise ValueError(
                "attentive compares networks of one band of parameters: it needs distribution: uniform, which has bands"
            )
        return self

    @model_validator(mode="after")
    def _phases_are_in_order(self) -> Self:
        if (self.kind == "progressive") != bool(self.phases):
            raise ValueError("phases and kind: progressive need each other; give both or neither")
        starts = [phase.start for phase in self.phases]
        if starts != sorted(set(starts)):
            raise ValueError(f"phases must start one after the other, got {starts}")
        opened = [name for phase in self.phases for name in phase.open]
        if len(set(opened)) != len(opened):
            raise ValueError(f"every dimension opens once, got {opened}")
        return self

    def networks_per_step(self) -> int:
        """How many networks one optimizer step trains."""
        several = {"uniform": self.random, "fair": self.random, "sandwich": self.random + 2}
        return several.get(self.kind, 1)


class DistillSettings(Strict):
    """Learning from another network's distribution, and from what its blocks put out.

    Attributes:
        source: `largest`, the largest network teaches the others of its step (Yu et al. 2020, BigNAS); `original`,
            the pretrained model that training started from, frozen.
        weight: the teacher's share of the loss; `auto`, with `original`: less where the student is better (`losses`).
        top_k: how many of the teacher's most likely tokens are kept.
        blocks: weight of the distance between block outputs, added to the loss (`Original`); only with `original`.
        block_loss: that distance, `mse` relative to the teacher's mean square or `cosine`.
    """

    source: Literal["largest", "original"] = "largest"
    weight: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = 0.0
    top_k: PositiveInt = 32
    blocks: NonNegativeFloat = 0.0
    block_loss: Literal["mse", "cosine"] = "mse"

    @model_validator(mode="after")
    def _what_is_given_is_used(self) -> Self:
        if self.blocks and self.source != "original":
            raise ValueError("distill.blocks needs source: original, the frozen model whose blocks are the aim")
        if self.weight == "auto" and self.source != "original":
            raise ValueError("distill.weight: auto needs source: original, a teacher that does not learn itself")
        if self.block_loss != "mse" and not self.blocks:
            raise ValueError("distill.block_loss does nothing without distill.blocks > 0")
        if "top_k" in changed(self) and not self.weight:
            raise ValueError("distill.top_k does nothing without distill.weight > 0")
        if self.source == "original" and not (self.weight or self.blocks):
            raise ValueError("distill.source: original does nothing without distill.weight or distill.blocks > 0")
        return self


class SecondPhase(Strict):
    """The end of a training of low-bit weights: a lower learning rate, and no weight decay.

    A latent weight near the edge between two codes has to settle: late in training big steps and the pull to zero
    only flip codes ("The Era of 1-bit LLMs: Training Tips, Code and FAQ", 2024, section 2; the learning rate is
    halved midway in Zhu et al. 2024, section 4.1).

    Attributes:
        start: share of the steps after which it begins.
        lr: factor on the learning rate from there on.
        weight_decay: from there on, instead of the first phase's.
    """

    start: float = Field(0.5, gt=0, lt=1)
    lr: float = Field(0.5, gt=0, le=1)
    weight_decay: NonNegativeFloat = 0.0


class MoeSettings(Strict):
    """How experts are kept busy; refused by the config of a run whose space has none.

    Attributes:
        balance: `loss` adds the load-balancing loss, `bias` moves a bias on the choice of experts instead.
        weight: of the balance loss; only with balance: loss.
        bias_rate: step of the bias, in units of a score; only with balance: bias.
        z_weight: of the routers' z-loss.
        expert_parallel: processes that hold the experts together, each a part of them; 1: everyone holds all.
    """

    balance: Literal["loss", "bias", "none"] = "loss"
    weight: NonNegativeFloat = 0.01
    bias_rate: NonNegativeFloat = 1e-3
    z_weight: NonNegativeFloat = 1e-3
    expert_parallel: PositiveInt = 1

    @model_validator(mode="after")
    def _nothing_is_idle(self) -> Self:
        for name, needs in (("weight", "loss"), ("bias_rate", "bias")):
            if name in changed(self) and self.balance != needs:
                raise ValueError(f"{name} does nothing with balance: {self.balance}; it is of balance: {needs}")
        return self


class MuonSettings(Strict):
    """Muon, the optimizer of matrices with `optimizer: muon` (`train/block_optimizer.py`); AdamW trains the rest.

    Attributes:
        scope: what is made orthogonal and moved: the `slice` of a matrix that the step's networks use, or the `whole`
            matrix, its gradient zero outside of the slice; a matrix that no network uses stays as it is.
        momentum: share of the momentum that stays from step to step.
        scale: mean square root of an update's elements, in learning rates; 0.2 is that of AdamW.
    """

    scope: Literal["slice", "whole"] = "slice"
    momentum: Decay = 0.95
    scale: PositiveFloat = 0.2


class TrainSettings(Strict):
    """One training run, of a supernet or of one network.

    Attributes:
        steps: optimizer steps.
        batch_size: sequences a network sees in a step, over all processes.
        seq_len: tokens of a sequence.
        optimizer: `adamw`, or `muon` for matrices and AdamW for the rest.
        update: what AdamW moves in a step, the weights that its networks use (`active`) or `all`, those that are not
            used with gradient zero: moments and decay go on (docs/optimizer.md).
        muon: of `optimizer: muon`.
        lr: peak learning rate, after a linear warm-up over `warmup` of the steps,
            then a cosine down to `lr_floor` times the peak.
        weight_decay: decoupled; norm gains, biases, embedding and head are excluded.
        second_phase: of ternary and binary weights; None trains in one phase. Choose `lr` higher with it.
        grad_clip: greatest global gradient norm.
        shared_batch: the networks of a step see the same batch instead of one each.
        document_mask: attention stays within documents, in training and wherever a loss is measured.
        micro_batch: sequences a process runs at once; 0 runs its whole share of the batch.
        checkpoint_blocks: keep only the input of every block and compute it again in the backward pass.
        zero_stage: ZeRO stage 0 to 3.
        deepspeed: a DeepSpeed JSON file to merge under our own keys (launch/ds_zero3.json, ...).
        dtype: fp32, or bf16 weights with an fp32 optimizer (GPUs, ZeRO stage 1 to 3).
        eval_every: steps between evaluations of the smallest, the largest and random networks.
        eval_sequences: validation sequences of each.
        save_every: steps between checkpoints; the last `keep` stay.
        skip_limit: steps in a row whose update may be skipped because a gradient is not finite.
        on_divergence: what is done about a loss that runs away (`train/divergence.py`): `warn`; `stop`, and name the
            newest good checkpoint; or `rewind` to it and train that part, and as much again, with a lower rate.
        rewind_lr: factor on the learning rate there.
        patience_minutes: of the processes of a launch with one that shows no sign of life, in training and in search.
        threads: CPU threads a process. `auto` times steps with one thread and with all, keeps what is faster, and looks
            again when steps become slower or faster than they were; what it chose is part of the run and replayed where
            it goes on. A number never changes; 0: all, as OMP_NUM_THREADS says, else the cores shared among the
            processes of a machine.
        init_from: folder of a pretrained model to start the supernet from; None starts from random weights.
        calibration: training sequences on which the importance of its parts is measured.
        correction: steps that the pretrained model itself is trained on the text first; where the text is new to it,
            its distribution is no aim ("teacher correction", Sreenivas et al. 2024, section 2.1).
    """

    steps: PositiveInt
    batch_size: PositiveInt = 8
    seq_len: PositiveInt = 256
    optimizer: Literal["adamw", "muon"] = "adamw"
    update: Literal["all", "active"] = "all"
    muon: MuonSettings = MuonSettings()
    lr: PositiveFloat = 2e-3
    warmup: float = Field(0.05, ge=0, lt=1)
    lr_floor: float = Field(0.1, ge=0, le=1)
    weight_decay: NonNegativeFloat = 0.1
    second_phase: SecondPhase | None = None
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    grad_clip: PositiveFloat = 1.0
    sampler: SamplerSettings = SamplerSettings()
    distill: DistillSettings = DistillSettings()
    moe: MoeSettings = MoeSettings()
    shared_batch: bool = False
    document_mask: bool = False
    micro_batch: NonNegativeInt = 0
    checkpoint_blocks: bool = False
    zero_stage: Literal[0, 1, 2, 3] = 0
    deepspeed: PathText | None = None
    dtype: Literal["fp32", "bf16"] = "fp32"
    log_every: PositiveInt = 10
    eval_every: PositiveInt = 100
    eval_sequences: PositiveInt = 32
    save_every: PositiveInt = 200
    keep: PositiveInt = 2
    skip_limit: PositiveInt = 10
    on_divergence: Literal["warn", "stop", "rewind"] = "warn"
    rewind_lr: float = Field(0.5, gt=0, lt=1)
    patience_minutes: PositiveFloat = 10.0
    threads: ThreadCount = "auto"
    init_from: PathText | None = None
    calibration: PositiveInt = 64
    correction: NonNegativeInt = 0

    @model_validator(mode="after")
    def _batch_is_made_of_micro_batches(self) -> Self:
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(
                f"micro_batch = {self.micro_batch} must divide batch_size = {self.batch_size}, and each process's share"
            )
        return self

    @model_validator(mode="after")
    def _rewinding_is_asked_for(self) -> Self:
        if "rewind_lr" in changed(self) and self.on_divergence != "rewind":
            raise ValueError("rewind_lr does nothing without on_divergence: rewind")
        if self.on_divergence == "rewind" and self.keep < 2:
            raise ValueError("on_divergence: rewind needs keep >= 2: the newest checkpoint may lie behind the rise")
        return self

    @model_validator(mode="after")
    def _master_weights_are_kept(self) -> Self:
        if self.dtype == "bf16" and self.zero_stage == 0:
            raise ValueError("dtype: bf16 needs zero_stage 1, 2 or 3: stage 0 keeps no fp32 copy of the weights")
        return self

    @model_validator(mode="after")
    def _muon_has_whole_matrices(self) -> Self:
        if self.optimizer != "muon" and (idle := changed(self.muon)):
            raise ValueError(f"muon.{min(idle)} does nothing with optimizer: {self.optimizer}; set optimizer: muon")
        if self.optimizer == "muon" and self.zero_stage:
            raise ValueError(
                f"optimizer: muon needs zero_stage: 0, got {self.zero_stage}: stages 1 to 3 cut matrices up among "
                "processes, and only whole ones can be made orthogonal"
            )
        return self

    @model_validator(mode="after")
    def _experts_can_be_divided(self) -> Self:
        if self.moe.expert_parallel > 1 and self.zero_stage:
            raise ValueError(
                f"moe.expert_parallel = {self.moe.expert_parallel} needs zero_stage: 0 (the dense part whole on every "
                f"process), got {self.zero_stage}; stages 1 to 3 divide experts themselves"
            )
        return self

    @model_validator(mode="after")
    def _teacher_is_there(self) -> Self:
        in_place = self.distill.weight and self.distill.source == "largest"
        if in_place and (self.sampler.kind != "sandwich" or not self.shared_batch):
            raise ValueError(
                "distill.weight > 0 needs sampler.kind: sandwich (the largest network is the teacher) "
                "and shared_batch: true (it teaches on the tokens it has seen)"
            )
        return self

    @model_validator(mode="after")
    def _what_needs_a_model_has_one(self) -> Self:
        if "calibration" in changed(self) and not self.init_from:
            raise ValueError("calibration does nothing without init_from: only a pretrained model is reordered")
        if self.correction and not self.init_from:
            raise ValueError("correction does nothing without init_from: it trains the pretrained model on the text")
        return self
