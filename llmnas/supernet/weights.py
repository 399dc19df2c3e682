"""Weights on disk: safetensors only, never a pickle."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from llmnas.errors import UserError
from llmnas.files import atomic_open
from llmnas.supernet.model import Transformer


def save_weights(model: Transformer, path: Path) -> None:
    """Write every parameter atomically."""
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic_open(path) as stream:
        stream.write(save(weights))


def load_weights(model: Transformer, path: Path) -> Transformer:
    """Read the parameters of `model` in place and return it.

    Raises:
        UserError: a damaged file, or weights of another shape.
    """
    try:
        weights = load(path.read_bytes())
    except SafetensorError as error:
        raise UserError(f"{path}: damaged weights ({error}); delete it and train again with --resume") from None
    expected = {name: value.shape for name, value in model.state_dict().items()}
    found = {name: value.shape for name, value in weights.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        name = wrong[0]
        raise UserError(f"{path}: of another search space: {name} is {found.get(name)}, needs {expected.get(name)}")
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(weights[name])
    return model
