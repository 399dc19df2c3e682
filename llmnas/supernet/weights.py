"""Weights on disk: safetensors only, never a pickle."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from llmnas.errors import UserError
from llmnas.files import Seal, parse_json, regular, write_bytes
from llmnas.nn.elastic_linear import grids
from llmnas.supernet.model import Transformer
from llmnas.supernet.old_names import modern_names, modern_value


def save_weights(model: Transformer, path: Path, seal: Seal | None = None) -> None:
    """Write every parameter and how it is sliced, atomically; `seal` as in `llmnas.files.hashed_open`."""
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_bytes(path, save(weights, {"grids": json.dumps(_grids(model))}), seal)


def _grids(model: Transformer) -> dict[str, list[int]]:
    return {name: list(shape) for name, shape in grids(model).items() if len(shape) > 2}


class _Stored:
    """An open file of weights, of today or of before linear layers were modules (`old_names`)."""

    def __init__(self, path: Path, file: Any, model: Transformer) -> None:
        self._file, self._grids = file, grids(model)
        self.names: Mapping[str, str] = modern_names(file.keys())
        written = parse_json((file.metadata() or {}).get("grids", "null"))
        if written is not None and written != (wanted := _grids(model)):
            name = min(name for name in wanted | written if wanted.get(name) != written.get(name))
            raise UserError(
                f"{path}: of another search space: {name} is {written.get(name, 'missing')}, needs {wanted.get(name)}"
            )

    def read(self, name: str, wanted: torch.Size) -> Tensor:
        """One tensor; not in the shape that is wanted where the file is of another search space."""
        return modern_value(name, self._file.get_tensor(self.names[name]), wanted, self._grids.get(name))


@contextlib.contextmanager
def _opened(path: Path, model: Transformer) -> Iterator[_Stored]:
    try:
        with safe_open(regular(path), framework="pt") as file:
            yield _Stored(path, file, model)
    except SafetensorError as error:
        raise UserError(f"{path}: damaged weights ({error}); delete it and train again with --resume") from None


@torch.no_grad()
def load_weights(model: Transformer, path: Path) -> Transformer:
    """Read the parameters of `model` in place and return it.

    Raises:
        UserError: a damaged file, or weights of another shape.
    """
    own = model.state_dict()
    with _opened(path, model) as stored:
        weights = {name: stored.read(name, own[name].shape if name in own else torch.Size()) for name in stored.names}
    expected = {name: list(value.shape) for name, value in own.items()}
    found = {name: list(value.shape) for name, value in weights.items()}
    if expected != found:
        raise UserError(f"{path}: of another search space: {_first_difference(found, expected)}")
    for name, value in own.items():
        value.copy_(weights[name])
    return model


def _first_difference(found: dict[str, list[int]], expected: dict[str, list[int]]) -> str:
    """What of the stored shapes is not as it must be; another number of experts by that number."""
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    for router in (name for name in wrong if name.endswith(".ffn.router.weight")):
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
    with _opened(path, model) as stored:
        for name, weight in model.named_parameters():
            if name not in stored.names:
                raise UserError(f"{path}: of another search space: it has no {name}")
            with opened(weight):
                value = stored.read(name, weight.shape)
                if weight.numel() and weight.shape != value.shape:
                    raise UserError(
                        f"{path}: of another search space: {name} is {list(value.shape)}, not {list(weight.shape)}"
                    )
                weight.copy_(value)
        for name, buffer in model.named_buffers():
            if name in stored.names:
                buffer.copy_(stored.read(name, buffer.shape))
