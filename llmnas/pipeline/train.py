"""Train the supernet."""

from __future__ import annotations

import numpy as np

from llmnas.cost import BudgetSampler
from llmnas.distributed.pulse import Pulse
from llmnas.errors import UserError
from llmnas.pipeline.context import Context
from llmnas.pipeline.prepare import prepare
from llmnas.pipeline.results import train_facts
from llmnas.pipeline.warm import correct, original, write_initial
from llmnas.pipeline.watched import checkpoint_left, watched
from llmnas.rng import generator, torch_seed
from llmnas.supernet import Transformer, save_weights
from llmnas.train.engine import build
from llmnas.train.processes import Processes
from llmnas.train.sampling import SupernetSampler, parameter_histogram
from llmnas.train.trainer import Outcome, train

_RANDOM_NETWORKS = 4


def train_supernet(context: Context, *, prepare_first: bool = False) -> Outcome | None:
    """Write `supernet/`; None where it is complete already. Collective under the deepspeed launcher.

    `prepare_first`: rank 0 writes the token files where they are missing, the others wait.
    """
    config, run = context.config, context.run
    if run.supernet.exists():
        return None
    if config.darts is not None:
        raise UserError("darts: does nothing without --method darts; add it to llmnas train, or remove the section")
    with watched(context, lambda: checkpoint_left(context)) as (processes, pulse):
        if prepare_first:
            pulse.first("prepare", lambda: prepare(context))
        pulse.first("warm start", lambda: write_initial(context))
        correct(context, processes, pulse)
        model, outcome = _train(context, processes, pulse)
    if processes.rank == 0:
        known = train_facts(run, "train").get("cpu_seconds")
        cpu_seconds = known if outcome.cpu_seconds is None else outcome.cpu_seconds
        # before the weights, whose presence ends the stage: a kill between the two loses nothing
        facts = {"rewinds": [rewind.model_dump() for rewind in outcome.rewinds]} if outcome.rewinds else {}
        run.record("train", steps=outcome.steps, tokens=outcome.tokens, seconds=round(outcome.seconds, 1),
            cpu_seconds=cpu_seconds, threads=outcome.threads, **facts)  # fmt: skip
        save_weights(model, run.supernet, run.seal)
    return outcome


def _train(context: Context, processes: Processes, pulse: Pulse) -> tuple[Transformer, Outcome]:
    """The trained supernet; collective."""
    config, run, tracker = context.config, context.run, context.tracker
    settings, space = config.train, config.space
    sequences = context.sequences(settings.seq_len, config.seed)
    sampler = SupernetSampler(space, config.budget, settings.sampler, config.seed)
    model = build(
        space, torch_seed(config.seed, "init"), settings, processes, run.initial if settings.init_from else None
    )
    windows, named = context.watched_windows(), context.named_windows(settings.eval_sequences)
    drawn = BudgetSampler(space, config.budget).sample_many(generator(config.seed, "watched"), _RANDOM_NETWORKS)

    def evaluate(model: Transformer) -> dict[str, float]:
        by_text = {
            f"val_loss_largest_{name}": float(context.losses(model, sampler.largest, found).mean())
            for name, found in named.items()
        }
        random = [float(context.losses(model, arch, windows).mean()) for arch in drawn]
        return {
            "val_loss_smallest": float(context.losses(model, sampler.smallest, windows).mean()),
            "val_loss_largest": float(context.losses(model, sampler.largest, windows).mean()),
            "val_loss_random": float(np.mean(random)),
            **by_text,
        }

    def log(step: int, metrics: dict[str, float]) -> None:
        tracker.log("supernet", step, metrics)
        if "train_loss" in metrics:
            note = f"loss {metrics['train_loss']:.3f}, {metrics['tokens_per_second']:,.0f} tokens/s"
            tracker.progress("supernet", step, settings.steps, note)

    if processes.rank == 0:
        tracker.log("supernet", 0, parameter_histogram(space, sampler))
    outcome = train(
        model, sampler, sequences, settings, processes,
        folder=run.checkpoints, identity=context.identity, log=log, evaluate=evaluate,
        guide=original(context, settings), begin=lambda step: pulse.at(f"step {step}"),
    )  # fmt: skip
    return model, outcome
