"""The training loop, on one page."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from llmnas.cost import count_params
from llmnas.data import Mixture, Sequences
from llmnas.errors import Preempted
from llmnas.memory import asking
from llmnas.space import Architecture
from llmnas.supernet import Losses, Teacher, Transformer, document_numbers, split_windows
from llmnas.train.agreement import Agreement, Wishes
from llmnas.train.balance import Balance
from llmnas.train.checkpoint import Checkpoints, newest
from llmnas.train.distill import Guide, Signal
from llmnas.train.divergence import Divergence
from llmnas.train.engine import Engine, Step
from llmnas.train.health import Meter, Skips
from llmnas.train.preemption import Preemption
from llmnas.train.processes import Processes
from llmnas.train.recovery import Recovery, Rewind, Steps, kept
from llmnas.train.rehearsal import Rehearsal
from llmnas.train.sampling import Sampler
from llmnas.train.schedule import first_sequence, weight_decay
from llmnas.train.settings import TrainSettings
from llmnas.train.threads import Threads

SMALLER_STEP = "lower train.micro_batch or train.seq_len, or set train.checkpoint_blocks: true"
SMALLER_MODEL = "take a smaller space, more processes, or a higher train.zero_stage"
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
        threads: (first step, CPU threads) of every stretch of the run.
        rewinds: where it went back, over all starts.
    """

    steps: int
    tokens: int
    seconds: float
    cpu_seconds: float | None
    threads: list[tuple[int, int]]
    rewinds: list[Rewind]


def train(
    model: Transformer,
    sampler: Sampler,
    sequences: Sequences | Mixture,
    settings: TrainSettings,
    processes: Processes,
    *,
    folder: Path | None = None,
    identity: str = "",
    log: Log | None = None,
    evaluate: Evaluate | None = None,
    guide: Guide | None = None,
    begin: Callable[[int], None] | None = None,
) -> Outcome:
    """Train `model` in place, from the newest checkpoint in `folder` where there is one; collective.

    Args:
        model: a supernet or a stand-alone network. At ZeRO stage 3 only rank 0 has its weights at the end.
        sampler: which networks a step trains.
        sequences: the training tokens, addressed by position.
        folder: where checkpoints go; None keeps none.
        identity: of this run, so that a checkpoint of another one is refused.
        log: called with (steps done, metrics) on rank 0.
        evaluate: metrics of the model every `eval_every` steps, logged on rank 0. At stage 3 every rank
            calls it (blocks are gathered as they run), else rank 0 alone.
        guide: the frozen model that teaches where `settings.distill.source` is `original`.
        begin: told on every rank which step begins (from 0).

    Raises:
        ValueError: a guide that the settings do not use, or none where they need one.
        RunError: too many steps in a row without a finite gradient, a loss that ran away and is not to be gone back
            from (`train.on_divergence`), or ranks that disagree.
        Preempted: SIGTERM came; a checkpoint of the step boundary is in `folder`.
    """
    if (guide is not None) != (settings.distill.source == "original"):
        raise ValueError(f"distill.source: {settings.distill.source}, guide: {guide}")
    with asking("weights, gradients and moments of the whole model", SMALLER_MODEL):
        engine = Engine(model, settings, processes)
    balance = Balance(model, settings.moe, engine.average)
    predictor = sampler.predictor
    watch, skips = Divergence(settings, model.base.vocab_size), Skips(settings, folder)
    learned = {"sampler": predictor, "experts": balance, "loss": watch}
    checkpoints = Checkpoints(engine, folder, kept(settings), identity, learned)
    first = checkpoints.restore()
    recovery = Recovery(settings, engine, checkpoints, folder, watch, skips)
    recovery.start(first)

    def rehearse(step: int) -> None:
        unheard, networks = Balance(model, settings.moe), sampler.networks(step)
        with asking(partial(_doing, step, networks, engine, model), SMALLER_STEP):
            train_step(Rehearsal(engine), networks, sequences, settings, step, unheard, 0.0, guide)

    threads = Threads(settings, engine, folder, rehearse)
    if first < settings.steps:
        threads.start(first)
    agreement = Agreement(processes.size, identity)
    writer = processes.rank == 0
    everyone = engine.everyone_runs
    meter = Meter(engine, settings)
    cpu_started = time.process_time()
    steps = Steps(first, settings.steps)
    with Preemption() as preemption:
        for step in steps:
            if begin:
                begin(step)
            networks = sampler.networks(step)
            wishes = agreement.check(step, networks, Wishes(preemption.requested, threads.changed(step)))
            if wishes.stop:
                if not skips.in_a_row:
                    checkpoints.save(step)
                raise Preempted(f"SIGTERM at step {step}: {newest(folder)}; start again with --resume")
            if wishes.look and not skips.in_a_row:
                checkpoints.save(step)
                threads.look(step)
            with threads.of(step), asking(partial(_doing, step, networks, engine, model), SMALLER_STEP):
                rate = recovery.rate(step)
                losses, result = train_step(engine, networks, sequences, settings, step, balance, rate, guide)
            means = engine.means(losses)
            if predictor:
                predictor.observe(networks, means.cpu().numpy())
            routing = balance.end_step()
            meter.add(len(networks))
            if (back := recovery.look(step, means, result)) is not None:
                steps.back(back)
                continue
            done, last = step + 1, step + 1 == settings.steps
            if done % settings.log_every == 0 or last:
                metrics = meter.read(rate, means, result, skips.total)
                if writer and log:
                    log(done, {**metrics, **_sizes(model, networks), **routing})
            if evaluate and (writer or everyone) and (done % settings.eval_every == 0 or last):
                with engine.evaluation(), meter.paused():
                    found = evaluate(model)
                if writer and log:
                    log(done, found)
            if (done % settings.save_every == 0 or last) and not skips.in_a_row:
                checkpoints.save(done)
        skips.end()
        balance.warn_of_idle()
        engine.release()
    if preemption.requested:
        raise Preempted(f"SIGTERM after the last step: {newest(folder)}; start again with --resume")
    taken = settings.steps - first
    cpu_seconds = (time.process_time() - cpu_started) * settings.steps / taken if taken else None
    # a start that found every step done has counted none
    size = 0 if taken else len(sampler.networks(settings.steps - 1))
    tokens_per_step = meter.tokens_per_step or size * settings.batch_size * settings.seq_len
    tokens = settings.steps * tokens_per_step
    return Outcome(settings.steps, tokens, meter.seconds(), cpu_seconds, threads.used(settings.steps), recovery.rewinds)


def _doing(step: int, networks: list[Architecture], engine: Engine, model: Transformer) -> str:
    """What a step asks memory for."""
    most = max(count_params(arch, model.base).total for arch in networks)
    at_once = f"{engine.micro_batch} sequences at once" if engine.micro_batch > 1 else "one sequence at a time"
    return f"step {step}: {at_once} through networks of up to {most:,} parameters"


def _sizes(model: Transformer, networks: list[Architecture]) -> dict[str, float]:
    """Parameters of the step's networks, beside their losses in the log."""
    return {f"params_{i}": float(count_params(arch, model.base).total) for i, arch in enumerate(networks)}


def train_step(
    engine: Engine | Rehearsal,
    networks: list[Architecture],
    sequences: Sequences | Mixture,
    settings: TrainSettings,
    step: int,
    balance: Balance,
    lr: float,
    guide: Guide | None = None,
) -> tuple[Tensor, Step]:
    """One optimizer step over several networks; returns their cross entropies ([networks], detached) and what it did.

    A network's share of the batch runs in micro-batches; the networks of one step have the same ones, so
    that a teacher is asked about the tokens it has seen.
    """
    size, pieces = engine.micro_batch, engine.local_batch // engine.micro_batch
    teachers: list[Teacher | None] = [None] * pieces
    entropies = torch.zeros(len(networks), device=engine.device)
    for i, arch in enumerate(networks):
        first = first_sequence(step, i, settings) + engine.processes.rank * engine.local_batch
        teaches = i == 0 and bool(settings.distill.weight) and guide is None
        for piece in range(pieces):
            batch = torch.from_numpy(sequences.batch(first + piece * size, size)).to(engine.device)
            tokens, targets = split_windows(batch)
            documents = document_numbers(tokens, sequences.eos_id if settings.document_mask else None)
            aim = guide(tokens, arch, documents) if guide else Signal(teachers[piece])
            out: Losses = engine.forward(
                tokens,
                arch,
                targets=targets,
                teacher=aim.teacher,
                teacher_weight=None if settings.distill.weight == "auto" else settings.distill.weight,
                emit_teacher=settings.distill.top_k if teaches else 0,
                block_aims=aim.blocks,
                block_weight=settings.distill.blocks,
                block_loss=settings.distill.block_loss,
                documents=documents,
                checkpoint_blocks=settings.checkpoint_blocks,
                **balance.loss_weights(),
            )
            balance.add(out.routings)
            engine.backward(out.loss / (len(networks) * pieces))
            teachers[piece] = out.teacher or teachers[piece]
            entropies[i] += out.cross_entropy / pieces
    return entropies, engine.step(lr, weight_decay(step, settings), networks)
