"""The pretrained model that a supernet starts from, reordered so that leading slices are the best ones."""

from __future__ import annotations

from pathlib import Path

import torch

from llmnas.data import Sequences
from llmnas.errors import RunError
from llmnas.pipeline.context import Context
from llmnas.pipeline.prepare import own_tokenizer
from llmnas.space import Architecture
from llmnas.supernet import Transformer, load_weights, save_weights
from llmnas.supernet.importance import importance, reorder
from llmnas.train.distill import Original
from llmnas.train.settings import TrainSettings
from llmnas.train.warmstart import Pretrained, read_pretrained, warm_start

TOLERANCE = 1e-4
"""Of a logit after reordering, relative to the largest one."""
_BATCH = 4


def write_initial(context: Context) -> None:
    """Write `supernet/initial.safetensors` from the folder that `train.init_from` names; what is there is kept.

    Raises:
        UserError: the model is not the largest network of the space, or the tokens are another model's.
        RunError: the reordered network computes something else.
    """
    config, run = context.config, context.run
    if config.train.init_from is None or run.initial.exists():
        return
    own_tokenizer(context)  # refuses tokens of another model, also where they were prepared earlier
    file = context.tokens("train")
    sequences = Sequences(file.tokens, config.train.seq_len, config.seed, file.info.eos_id)
    windows = torch.from_numpy(sequences.fixed(config.train.calibration))[:, :-1]
    context.tracker.progress("warm start", 0, 1, f"{config.train.init_from}: {windows.numel():,} calibration tokens")
    pretrained = read_pretrained(Path(config.train.init_from), config.space.base.rope_order)
    model = Transformer(config.space, seed=None)
    difference = start_from(model, pretrained, [windows[i : i + _BATCH] for i in range(0, len(windows), _BATCH)])
    save_weights(model, run.initial)
    run.record("warm_start", model=str(config.train.init_from), calibration=windows.numel(), difference=difference)
    context.tracker.progress("warm start", 1, 1, f"reordered; logits differ by {difference:.1e}")


@torch.no_grad()
def start_from(model: Transformer, pretrained: Pretrained, batches: list[torch.Tensor]) -> float:
    """Make the pretrained model the largest network, then sort its parts by importance on `batches` ([B, S] each).

    Returns:
        The largest difference of a logit that sorting made, relative to the largest logit.

    Raises:
        RunError: it is more than `TOLERANCE`.
    """
    warm_start(model, pretrained)
    before = model(batches[0])
    reorder(model, importance(model, batches))
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
    path = context.run.require(context.run.initial, "train")
    model = load_weights(Transformer(context.config.space, seed=None), path)
    return Original(model, settings.distill, None if arch is None else [i for i, _ in arch.kept])
