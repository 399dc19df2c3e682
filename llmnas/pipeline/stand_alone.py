"""Training one network outside of the supernet, once: the piece that retrain and correlate share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmnas.cost import count_params
from llmnas.data import Sequences
from llmnas.evaluate.quality import quality, window_losses
from llmnas.files import read_json, write_json
from llmnas.pipeline.context import Context
from llmnas.rng import torch_seed
from llmnas.runs import identity
from llmnas.space import Architecture
from llmnas.supernet import Transformer, extract, load_weights, save_weights, stand_alone_shape
from llmnas.train.engine import start_processes
from llmnas.train.sampling import OneNetwork
from llmnas.train.settings import TrainSettings
from llmnas.train.trainer import train


def build(context: Context, arch: Architecture, seed: int, *, inherit: bool) -> Transformer:
    """The network with fresh weights, or with those of the supernet."""
    if inherit:
        return extract(context.supernet(), arch)
    base = context.config.space.base
    widest = max(spec.head_dim for _, spec in context.config.space.envelope.kept)
    # a hand-designed shape has its own head_dim; one of the space keeps the supernet's frequencies
    rope_dim = base.rope_dim or (widest if context.config.space.contains(arch) else arch.kept[0][1].head_dim)
    return Transformer(stand_alone_shape(base, rope_dim, arch), torch_seed(seed, "init"))


def train_alone(
    context: Context, arch: Architecture, settings: TrainSettings, seed: int, folder: Path, note: str, *, inherit: bool
) -> dict[str, Any]:
    """Train, evaluate on all validation windows, store; a stored result of the same settings is returned.

    Seeds decide initial weights and order of the data, so runs of one seed are paired.
    """
    config = context.config
    own = identity(context.identity, arch.to_dict(), settings.model_dump(mode="json"), seed, inherit)
    stored = folder / "result.json"
    if stored.exists():
        result: dict[str, Any] = read_json(stored)
        if result["identity"] == own:
            return result
    model = build(context, arch, seed, inherit=inherit)
    network = model.envelope
    sequences = Sequences(context.tokens("train").tokens, settings.seq_len, config.seed + 1 + seed)

    def log(step: int, metrics: dict[str, float]) -> None:
        context.tracker.progress(note, step, settings.steps, f"loss {metrics.get('train_loss', float('nan')):.3f}")

    outcome = train(
        model, OneNetwork(network), sequences, settings, start_processes(),
        folder=folder / f"checkpoints-{own}", identity=own, log=log,
    )  # fmt: skip
    windows, bytes_per_token = context.windows(config.search.windows)
    losses = window_losses(model, None, windows)
    save_weights(model, folder / "model.safetensors")
    result = {
        "identity": own, "id": arch.id, "architecture": arch.to_dict(), "seed": seed, "inherit": inherit,
        "params": count_params(arch, config.space.base).total, "tokens": outcome.tokens,
        **quality(float(losses.mean()), bytes_per_token),
    }  # fmt: skip
    write_json(stored, result)
    return result


def load_alone(context: Context, arch: Architecture, folder: Path) -> Transformer:
    """The stored network of `train_alone`."""
    return load_weights(build(context, arch, 0, inherit=False), folder / "model.safetensors")
