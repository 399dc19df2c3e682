"""The training loop, on one page."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llmnas.data import EOS_ID, Sequences
from llmnas.errors import RunError
from llmnas.space import Architecture
from llmnas.supernet import Losses, Transformer
from llmnas.train.balance import Balance
from llmnas.train.checkpoint import load_checkpoint, save_checkpoint
from llmnas.train.engine import Engine, Processes, set_threads
from llmnas.train.sampling import Sampler
from llmnas.train.schedule import first_sequence, learning_rate
from llmnas.train.settings import TrainSettings

Log = Callable[[int, dict[str, float]], None]
Evaluate = Callable[[Transformer], dict[str, float]]


@dataclass(frozen=True)
class Outcome:
    """What a training run was.

    Attributes:
        steps: optimizer steps.
        tokens: seen by all networks.
        seconds: of this start.
        cpu_seconds: of this process, all threads, for the whole run: where it went on from a
            checkpoint, the steps of this start stand for the others. None where no step was left.
    """

    steps: int
    tokens: int
    seconds: float
    cpu_seconds: float | None


def train(
    model: Transformer,
    sampler: Sampler,
    sequences: Sequences,
    settings: TrainSettings,
    processes: Processes,
    *,
    folder: Path | None = None,
    identity: str = "",
    log: Log | None = None,
    evaluate: Evaluate | None = None,
) -> Outcome:
    """Train `model` in place, from the newest checkpoint in `folder` where there is one.

    Args:
        model: a supernet or a stand-alone network.
        sampler: which networks a step trains.
        sequences: the training tokens, addressed by position.
        folder: where checkpoints go; None keeps none.
        identity: of this run, so that a checkpoint of another one is refused.
        log: called with (steps done, metrics) on rank 0.
        evaluate: metrics of the model, logged every `eval_every` steps on rank 0.

    Raises:
        RunError: the loss is no longer finite.
    """
    set_threads(settings, processes)
    engine = Engine(model, settings, processes)
    balance = Balance(model, settings.moe)
    first = load_checkpoint(engine, folder, identity) if folder else 0
    writer = processes.rank == 0
    started = logged = time.perf_counter()
    cpu_started = time.process_time()
    tokens_per_step = 0
    for step in range(first, settings.steps):
        networks = sampler.networks(step)
        loss = train_step(engine, networks, sequences, settings, step, balance)
        routing = balance.end_step(engine.average)
        done = step + 1
        tokens_per_step = len(networks) * settings.batch_size * settings.seq_len
        last = done == settings.steps
        if done % settings.log_every == 0 or last:
            mean_loss = engine.mean(loss)
            if not math.isfinite(mean_loss):
                raise RunError(f"step {done}: the training loss is {mean_loss}; lower train.lr (now {settings.lr})")
            now = time.perf_counter()
            steps = done % settings.log_every or settings.log_every
            rate = min(steps, done - first) * tokens_per_step / (now - logged)
            logged = now
            if writer and log:
                rates = {"lr": learning_rate(step, settings), "tokens_per_second": rate}
                log(done, {"train_loss": mean_loss, **rates, **routing})
        if evaluate and log and writer and (done % settings.eval_every == 0 or last):
            log(done, evaluate(model))
            logged = time.perf_counter()
        if folder and (done % settings.save_every == 0 or last):
            save_checkpoint(engine, folder, done, settings.keep, identity)
    balance.warn_of_idle(engine.average)
    seconds = time.perf_counter() - started
    taken = settings.steps - first
    cpu_seconds = (time.process_time() - cpu_started) * settings.steps / taken if taken else None
    return Outcome(settings.steps, settings.steps * tokens_per_step, seconds, cpu_seconds)


def train_step(
    engine: Engine,
    networks: list[Architecture],
    sequences: Sequences,
    settings: TrainSettings,
    step: int,
    balance: Balance,
) -> Tensor:
    """One optimizer step over several networks; returns their mean cross entropy (scalar, detached)."""
    teacher = None
    total = torch.zeros((), device=engine.device)
    for i, arch in enumerate(networks):
        first = first_sequence(step, i, settings) + engine.processes.rank * engine.local_batch
        batch = torch.from_numpy(sequences.batch(first, engine.local_batch)).to(engine.device)
        tokens, targets = batch[:, :-1], batch[:, 1:]
        teaches = i == 0 and settings.distill.weight > 0
        out: Losses = engine.forward(
            tokens,
            arch,
            targets=targets,
            teacher=teacher,
            teacher_weight=settings.distill.weight,
            emit_teacher=settings.distill.top_k if teaches else 0,
            documents=document_numbers(tokens) if settings.document_mask else None,
            **balance.loss_weights(),
        )
        balance.add(out.routings)
        engine.backward(out.loss / len(networks))
        teacher = out.teacher or teacher
        total += out.cross_entropy
    engine.step(learning_rate(step, settings))
    return total / len(networks)


def document_numbers(tokens: Tensor) -> Tensor:
    """[batch, seq] -> how many documents ended before each token of the row."""
    ends = tokens == EOS_ID
    return ends.cumsum(1) - ends.long()
