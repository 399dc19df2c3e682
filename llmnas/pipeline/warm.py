"""The pretrained model that a supernet starts from, reordered so that leading slices are the best ones.

In a space with experts its feed-forwards become experts.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from llmnas.distributed.pulse import Pulse
from llmnas.errors import RunError
from llmnas.pipeline.context import Context
from llmnas.rng import torch_seed
from llmnas.space import Architecture, FixedShape
from llmnas.supernet import Transformer, load_weights, save_weights
from llmnas.supernet.importance import importance, reorder
from llmnas.train.distill import Original
from llmnas.train.engine import build
from llmnas.train.processes import Processes
from llmnas.train.sampling import OneNetwork
from llmnas.train.settings import TrainSettings
from llmnas.train.trainer import train
from llmnas.train.upcycle import upcycle
from llmnas.train.warmstart import Pretrained, read_pretrained, warm_start

TOLERANCE = 1e-4
"""Of a logit after reordering, relative to the largest one."""
_BATCH = 4
_ORDER = 1 << 20
"""Of the text that the model itself is trained on: far from the orders of the supernet and of later trainings."""


def write_initial(context: Context) -> None:
    """Write `supernet/initial.safetensors` from the folder that `train.init_from` names; what is there is kept.

    Where the model is to be trained on the text first, its weights go to `supernet/pretrained.safetensors`.

    Raises:
        UserError: the model is not the largest network of the space, or the tokens are another model's.
        RunError: the reordered network computes something else.
    """
    config, run = context.config, context.run
    target = run.pretrained if config.train.correction else run.initial
    if config.train.init_from is None or target.exists():
        return
    context.own_tokenizer()  # refuses tokens of another model, also where they were prepared earlier
    batches = calibration(context)
    tokens = sum(batch.numel() for batch in batches)
    context.tracker.progress("warm start", 0, 1, f"{config.train.init_from}: {tokens:,} calibration tokens")
    pretrained = read_pretrained(Path(config.train.init_from), config.space.base.rope_order)
    # initial weights where the model leaves some open: the routers of experts that its feed-forwards become
    model = Transformer(
        config.space, torch_seed(config.seed, "init") if max(config.space.experts.choices) > 1 else None
    )
    difference = start_from(model, pretrained, batches)
    save_weights(model, target, run.seal)
    run.record("warm_start", model=str(config.train.init_from), calibration=tokens, difference=difference,
        dtype=str(pretrained.dtype).removeprefix("torch."))  # fmt: skip
    context.tracker.progress("warm start", 1, 1, f"reordered; logits differ by {difference:.1e}")


def calibration(context: Context) -> list[torch.Tensor]:
    """Batches of training text that importance is measured on, [B, S] each."""
    settings = context.config.train
    windows = context.sequences(settings.seq_len, context.config.seed, learned=False).fixed(settings.calibration)
    tokens = torch.from_numpy(windows)[:, :-1]
    return [tokens[i : i + _BATCH] for i in range(0, len(tokens), _BATCH)]


def correct(context: Context, processes: Processes, pulse: Pulse) -> None:
    """Train the pretrained model on the text for `train.correction` steps, sort it again, write `initial.safetensors`.

    A teacher that does not know the text holds its students back; Sreenivas et al. 2024 ("LLM Pruning and Distillation
    in Practice", section 2.1) therefore train the teacher on it first. Collective; what is there is kept.
    """
    config, run = context.config, context.run
    steps = config.train.correction
    if not steps or run.initial.exists():
        return
    settings = config.stage_settings("train", {"steps": steps})
    model = build(config.space, torch_seed(config.seed, "init"), settings, processes, run.pretrained)

    def log(step: int, metrics: dict[str, float]) -> None:
        context.tracker.progress("the model itself", step, steps, f"loss {metrics.get('train_loss', math.nan):.3f}")

    sequences = context.sequences(settings.seq_len, config.seed + _ORDER)
    outcome = train(
        model, OneNetwork(config.space.envelope), sequences, settings, processes,
        folder=run.checkpoints.with_name("correction"), identity=context.identity, log=log,
        begin=lambda step: pulse.at(f"correction, step {step}"),
    )  # fmt: skip

    def write() -> None:
        reorder(model.eval(), importance(model, calibration(context)))
        save_weights(model, run.initial, run.seal)
        run.record("correction", steps=outcome.steps, tokens=outcome.tokens, cpu_seconds=outcome.cpu_seconds)

    pulse.first("correction", write)


@torch.no_grad()
def start_from(model: Transformer, pretrained: Pretrained, batches: list[torch.Tensor]) -> float:
    """Make the pretrained model the largest network, then sort its parts by importance on `batches` ([B, S] each).

    In a space with experts the dense model is sorted before its feed-forwards are copied (`upcycle`), so that every
    expert has its channels in one order, also one that no calibration token would have reached.

    Returns:
        The largest difference of a logit from the pretrained model's, relative to the largest logit.

    Raises:
        UserError: the space cannot hold the model.
        RunError: the difference is more than `TOLERANCE`.
    """
    warm_start(model, upcycle(pretrained, model))  # refuses what does not fit before anything is measured
    dense = model
    if model.envelope.kept[0][1].experts > 1:
        dense = Transformer(FixedShape(pretrained.base, pretrained.arch), seed=None)
        warm_start(dense, pretrained)
    before = dense(batches[0])
    reorder(dense, importance(dense, batches))
    if dense is not model:
        warm_start(model, upcycle(replace(pretrained, weights=dense.state_dict()), model))
    difference = float((model(batches[0]) - before).abs().max() / before.abs().max())
    if not difference <= TOLERANCE:
        raise RunError(
            f"warm start: reordering changed the largest network (a logit by {difference:.1e} of the largest)"
        )
    return difference


def original(context: Context, settings: TrainSettings, arch: Architecture | None = None) -> Original | None:
    """The teacher that `settings.distill` asks for; `arch`: of the supernet, for a student that is cut out of it."""
    if settings.distill.source != "original":
        return None
    path = context.run.check(context.run.require(context.run.initial, "train"))
    model = load_weights(Transformer(context.config.space, seed=None), path)
    return Original(model, settings.distill, None if arch is None else [i for i, _ in arch.kept])
