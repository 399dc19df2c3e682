"""Training one network outside of the supernet, once: the piece that retrain and correlate share."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from llmnas.cost import count_params
from llmnas.evaluate.quality import quality, window_losses
from llmnas.files import write_json
from llmnas.pipeline.context import Context
from llmnas.pipeline.results import trained
from llmnas.pipeline.warm import original
from llmnas.rng import torch_seed
from llmnas.runs import identity
from llmnas.space import Architecture
from llmnas.supernet import Transformer, extract, load_weights, save_weights, stand_alone_shape
from llmnas.train.engine import start_processes
from llmnas.train.sampling import OneNetwork
from llmnas.train.settings import UNMARKED, WATCHING, TrainSettings
from llmnas.train.trainer import train

Start = Literal["scratch", "supernet", "pretrained"]
"""Where a network's weights come from: a seed, the trained supernet, or the pretrained model that it started from."""


def build(context: Context, arch: Architecture, seed: int, start: Start) -> Transformer:
    """The network with the weights that it starts from."""
    if start == "supernet":
        return extract(context.supernet(), arch)
    if start == "pretrained":
        path = context.run.check(context.run.require(context.run.initial, "train"))
        return extract(load_weights(Transformer(context.config.space, seed=None), path), arch)
    shape = stand_alone_shape(context.config.space.base, rope_dim(context, arch), arch)
    return Transformer(shape, torch_seed(seed, "init"))


def rope_dim(context: Context, arch: Architecture) -> int:
    """A hand-designed shape has its own head_dim; one of the space keeps the supernet's frequencies."""
    space = context.config.space
    widest = max(spec.head_dim for _, spec in space.envelope.kept)
    return space.base.rope_dim or (widest if space.contains(arch) else arch.kept[0][1].head_dim)


def train_alone(
    context: Context, arch: Architecture, settings: TrainSettings, seed: int, folder: Path, note: str, start: Start
) -> dict[str, Any]:
    """Train, evaluate on all validation windows, store; a stored result of the same settings is returned.

    Seeds decide initial weights and order of the data, so runs of one seed are paired.
    """
    config = context.config
    own = _identity(context, arch, settings, seed, start)
    stored = _result(folder)
    if trained_as(folder) == own:
        return dict(trained(stored))
    model = build(context, arch, seed, start)
    network = model.envelope
    sequences = context.sequences(settings.seq_len, config.seed + 1 + seed)

    def log(step: int, metrics: dict[str, float]) -> None:
        context.tracker.progress(note, step, settings.steps, f"loss {metrics.get('train_loss', float('nan')):.3f}")

    outcome = train(
        model, OneNetwork(network), sequences, settings, start_processes(),
        folder=folder / f"checkpoints-{own}", identity=own, log=log,
        guide=original(context, settings, arch),
    )  # fmt: skip
    windows, bytes_per_token = context.loss_windows()
    losses = window_losses(model, None, windows, eos_id=sequences.eos_id if settings.document_mask else None)
    named = context.named_windows(config.search.windows)
    by_text = {name: float(context.losses(model, None, found).mean()) for name, found in named.items()}
    stored.unlink(missing_ok=True)  # a kill between the two leaves no weights under the result of others
    save_weights(model, weights_of(folder), context.run.seal)
    result = {
        "identity": own, "id": arch.id, "architecture": arch.to_dict(), "seed": seed, "start": start,
        "params": count_params(arch, config.space.base).total, "tokens": outcome.tokens, "lr": settings.lr,
        "cpu_seconds": outcome.cpu_seconds, **quality(float(losses.mean()), bytes_per_token),
        **({"val_loss_by_text": by_text} if by_text else {}),
    }  # fmt: skip
    write_json(stored, result, context.run.seal)
    return result


def _identity(context: Context, arch: Architecture, settings: TrainSettings, seed: int, start: Start) -> str:
    """Of what the result depends on: without inherited weights, nothing of how the supernet was trained."""
    values = context.values
    training = settings.model_dump(mode="json", exclude={*WATCHING, *UNMARKED})
    if "init_from" in training and settings.init_from == context.config.train.init_from:
        training["init_from"] = values["train"]["init_from"]
    shape = stand_alone_shape(context.config.space.base, rope_dim(context, arch), arch)
    depends = [values["seed"], values["data"], values["search"]["windows"], asdict(shape)]
    return identity(*depends, training, seed, start, context.identity if start != "scratch" else None)


def trained_as(folder: Path) -> str | None:
    """The identity of the training that the weights in a folder of `train_alone` are of; None where there is none."""
    return trained(_result(folder))["identity"] if _result(folder).exists() else None


def weights_of(folder: Path) -> Path:
    """Where a network trained alone has its weights."""
    return folder / "model.safetensors"


def _result(folder: Path) -> Path:
    return folder / "result.json"


def load_alone(context: Context, arch: Architecture, folder: Path) -> Transformer:
    """The stored network of `train_alone`."""
    return load_weights(build(context, arch, 0, "scratch"), context.run.check(weights_of(folder)))
