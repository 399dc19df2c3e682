"""What a run would need before anyone starts it: memory a GPU by ZeRO stage, FLOPs, days."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from llmnas.config import Config
from llmnas.cost import BudgetSampler, count_params, prefill_flops_per_token
from llmnas.cost.training import ModelSizes, TrainingMemory, model_states, saved_bytes
from llmnas.pipeline.retrain import trainings
from llmnas.report.html import Table
from llmnas.rng import generator
from llmnas.supernet import Transformer
from llmnas.train.deepspeed_json import shares
from llmnas.train.optimizer import matrices_of
from llmnas.train.sampling import SupernetSampler, largest_within
from llmnas.train.settings import TrainSettings

_GIB = 2**30
_DRAWN = 64


@dataclass(frozen=True)
class Machine:
    """What the run is planned for.

    Attributes:
        gpus: processes, one a GPU.
        gpu_memory: GB (10^9 bytes) of each.
        tflops: peak matrix throughput of one GPU in the type of training, 10^12 operations a second.
        utilisation: share of that peak that training reaches.
    """

    gpus: int
    gpu_memory: float
    tflops: float
    utilisation: float


@dataclass(frozen=True)
class Work:
    """Floating-point operations of the stages, and of training one candidate alone.

    Attributes:
        correction: training the pretrained model itself on the text, before the supernet (`train.correction`).
        retrain: `retrained` trainings, each of a network as large as the budget allows.
    """

    correction: float
    supernet: float
    search: float
    retrain: float
    one_candidate: float
    candidates: int
    retrained: int

    @property
    def total(self) -> float:
        """Of the whole run."""
        return self.correction + self.supernet + self.search + self.retrain

    @property
    def break_even(self) -> float:
        """Candidates trained alone for the price of supernet and search."""
        return (self.correction + self.supernet + self.search) / self.one_candidate


@dataclass(frozen=True)
class Plan:
    """The numbers of `llmnas plan`; `memory` maps a row's name to its bytes."""

    sizes: ModelSizes
    memory: dict[str, TrainingMemory]
    work: Work
    machine: Machine
    tokens: int

    def fits(self, row: str) -> bool:
        """Whether the row's peak leaves a tenth of the GPU's memory free."""
        return self.memory[row].total <= 0.9e9 * self.machine.gpu_memory

    def days(self, operations: float) -> float:
        """On all GPUs at the given utilisation."""
        rate = self.machine.gpus * self.machine.tflops * 1e12 * self.machine.utilisation
        return operations / rate / 86400


def model_sizes(model: Transformer, optimizer: str) -> ModelSizes:
    """Counted on the module itself (on the meta device: no memory)."""
    root = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("layers."))
    block = max(sum(p.numel() for p in layer.parameters()) for layer in model.layers)
    one_moment = sum(weight.numel() for weight in matrices_of(model)) if optimizer == "muon" else 0
    return ModelSizes(sum(p.numel() for p in model.parameters()), root, block, one_moment)


def plan(config: Config, machine: Machine) -> Plan:
    """Plan the run of a config.

    Raises:
        UserError: a batch or a micro-batch that does not divide among the GPUs: training would refuse it too.
    """
    train, space = config.train, config.space
    at_once = shares(train, machine.gpus)[1]
    with torch.device("meta"):
        sizes = model_sizes(Transformer(space, seed=None), train.optimizer)
    tokens = at_once * train.seq_len
    bf16 = train.dtype == "bf16"
    activations = saved_bytes(space.envelope, space.base, tokens, 2 if bf16 else 4, train.checkpoint_blocks)
    rows = [("stage 0", 0, False)] if not bf16 else []
    if train.optimizer != "muon":  # which the other stages refuse
        rows += [("stage 1", 1, False), ("stage 2", 2, False), ("stage 3", 3, False), ("stage 3, offload", 3, True)]
    memory = {}
    for name, stage, offload in rows:
        states = model_states(sizes, stage, machine.gpus, bf16=bf16, offload=offload)
        if stage == 3 and not train.checkpoint_blocks:
            # autograd keeps slices of the gathered weights until the backward pass: the whole model stays
            value = 2 if bf16 else 4
            states = replace(states, gathered=value * (sizes.total + sizes.root + sizes.block))
        # every process holds the frozen original whole, in fp32 (`train/distill.py`)
        teacher = 4 * sizes.total if train.distill.source == "original" else 0
        memory[name] = replace(states, weights=states.weights + teacher, activations=activations)
    work, networks = _work(config)
    seen = train.steps * networks * train.batch_size * train.seq_len
    return Plan(sizes, memory, work, machine, round(seen))


def _work(config: Config) -> tuple[Work, float]:
    """Operations (a training step is three forward passes, four with checkpointed blocks), networks a step."""
    train, space, base = config.train, config.space, config.space.base

    def passes(checkpoint_blocks: bool) -> int:
        return 4 if checkpoint_blocks else 3

    sampler = SupernetSampler(space, config.budget, train.sampler, config.seed)
    steps = [sampler.networks(step) for step in range(_DRAWN)]
    per_step = float(np.mean([sum(prefill_flops_per_token(a, base, train.seq_len) for a in step) for step in steps]))
    networks = float(np.mean([len(step) for step in steps]))
    drawn = BudgetSampler(space, config.budget).sample_many(generator(config.seed, "plan"), _DRAWN)
    mean = float(np.mean([prefill_flops_per_token(arch, base, train.seq_len) for arch in drawn]))
    alone = config.stage_settings("retrain", config.retrain.train)
    best = prefill_flops_per_token(largest_within(space, config.budget, config.seed), base, alone.seq_len)
    whole = prefill_flops_per_token(space.envelope, base, train.seq_len)

    def taught(settings: TrainSettings, student: float, networks: float = 1.0) -> float:
        """Of a token: forward and backward passes of the students, a forward pass of the original for each of them."""
        teacher = whole if settings.distill.source == "original" else 0.0
        return passes(settings.checkpoint_blocks) * student + networks * teacher

    tokens = train.batch_size * train.seq_len
    alone_tokens = alone.steps * alone.batch_size * alone.seq_len
    retrained = trainings(config)
    work = Work(
        correction=train.correction * tokens * passes(train.checkpoint_blocks) * whole,
        supernet=train.steps * tokens * taught(train, per_step, networks),
        search=config.search.evaluations * config.search.sample * train.seq_len * mean,
        retrain=alone_tokens * taught(alone, best) * retrained,
        one_candidate=alone_tokens * taught(alone, mean),
        candidates=config.search.evaluations,
        retrained=retrained,
    )
    return work, networks


def tables(config: Config, result: Plan) -> list[Table]:
    """The plan for a terminal."""
    space, machine, work = config.space, result.machine, result.work
    largest, smallest = (count_params(a, space.base).total for a in (space.largest(), space.smallest()))
    sizes = Table(
        "Parameters",
        ("what", "parameters"),
        [
            ("supernet", f"{result.sizes.total:,}"),
            ("largest network", f"{largest:,}"),
            ("smallest network", f"{smallest:,}"),
        ],
    )
    rows = []
    for name, m in result.memory.items():
        parts = (m.weights, m.gradients, m.optimizer, m.gathered, m.activations, m.total)
        host = f"{m.host / _GIB:.1f}" if m.host else "-"
        rows.append((name, *(f"{part / _GIB:.1f}" for part in parts), host, "yes" if result.fits(name) else "NO"))
    columns = ("GiB a GPU", "weights", "gradients", "optimizer", "gathered", "activations", "total", "host", "fits")
    chosen = f"stage {config.train.zero_stage}"
    note = (
        f"{machine.gpus} GPUs of {machine.gpu_memory:g} GB, {config.train.dtype}, "
        f"blocks {'' if config.train.checkpoint_blocks else 'not '}checkpointed; the config asks for {chosen}. "
        "It fits where a tenth stays free; CUDA's context and fragmentation are left out."
    )
    memory = Table("Memory", columns, rows, note)
    costs = [("the original on the text", work.correction)] if work.correction else []
    costs += [
        ("supernet", work.supernet), ("search", work.search), ("retrain", work.retrain), ("all of it", work.total),
        (f"instead: {work.candidates} candidates alone", work.one_candidate * work.candidates),
    ]  # fmt: skip
    compute = Table(
        "Compute",
        ("stage", "FLOPs", "days"),
        [(name, f"{operations:.2e}", f"{result.days(operations):.2f}") for name, operations in costs],
        f"{result.tokens:,} tokens in the supernet; retrain: {work.retrained} trainings, each reckoned as large as the "
        f"budget allows; {machine.tflops:g} TFLOP/s a GPU at {machine.utilisation:.0%}. "
        f"Supernet and search cost as much as {work.break_even:.1f} candidates trained alone.",
    )
    return [sizes, memory, compute]
