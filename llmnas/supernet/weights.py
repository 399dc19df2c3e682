"""Weights on disk: safetensors only, never a pickle."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import nn

from llmnas.errors import UserError
from llmnas.files import Seal, open_regular, regular, write_bytes
from llmnas.supernet.model import Transformer


def save_weights(model: Transformer, path: Path, seal: Seal | None = None) -> None:
    """Write every parameter atomically; `seal` as in `llmnas.files.hashed_open`."""
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_bytes(path, save(weights), seal)


def load_weights(model: Transformer, path: Path) -> Transformer:
    """Read the parameters of `model` in place and return it.

    Raises:
        UserError: a damaged file, or weights of another shape.
    """
    try:
        with open_regular(path) as stream:
            weights = load(stream.read())
    except SafetensorError as error:
        raise UserError(f"{path}: damaged weights ({error}); delete it and train again with --resume") from None
    expected = {name: list(value.shape) for name, value in model.state_dict().items()}
    found = {name: list(value.shape) for name, value in weights.items()}
    if expected != found:
        raise UserError(f"{path}: of another search space: {_first_difference(found, expected)}")
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(weights[name])
    return model


def _first_difference(found: dict[str, list[int]], expected: dict[str, list[int]]) -> str:
    """What of the stored shapes is not as it must be; another number of experts by that number."""
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    for router in (name for name in wrong if name.endswith(".ffn.router")):
        rows = [shapes.get(router, [1])[0] for shapes in (found, expected)]
        if rows[0] != rows[1]:
            return f"layer {router.split('.')[1]} has {rows[0]} experts at most, needs {rows[1]}"
    return f"{wrong[0]} is {found.get(wrong[0], 'missing')}, needs {expected.get(wrong[0], 'to be absent')}"


@torch.no_grad()
def fill_weights(
    model: Transformer, path: Path, opened: Callable[[nn.Parameter], contextlib.AbstractContextManager[None]]
) -> None:
    """Read every parameter in place, one at a time: the model is never whole in memory beside its file.

    Args:
        opened: entered around each parameter, which is whole only while it is open (ZeRO-3).

    Raises:
        UserError: a damaged file, or weights of another shape.
    """
    try:
        with safe_open(regular(path), framework="pt") as file:
            stored = set(file.keys())
            for name, weight in model.named_parameters():
                if name not in stored:
                    raise UserError(f"{path}: of another search space: it has no {name}")
                value = file.get_tensor(name)
                with opened(weight):
                    if weight.numel() and weight.shape != value.shape:
                        raise UserError(
                            f"{path}: of another search space: {name} is {list(value.shape)}, not {list(weight.shape)}"
                        )
                    weight.copy_(value)
            for name, buffer in model.named_buffers():
                if name in stored:
                    buffer.copy_(file.get_tensor(name))
    except SafetensorError as error:
        raise UserError(f"{path}: damaged weights ({error}); delete it and train again with --resume") from None
