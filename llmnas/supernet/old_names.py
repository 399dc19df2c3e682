"""Reads what was written before linear layers were modules: their weights had other names, and grids of four axes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llmnas.nn.elastic_linear import grids

_OLD = re.compile(
    r"((?:.*\.)?(?:embedding|head|q|k|v|o|forget|candidate|output_gate|gate|up|down|router))"
    r"(?:_(bias|ternary_scale|binary_scale))?"
)


def modern_name(name: str) -> str:
    """`attention.q.weight` for `attention.q`, `attention.q.bias` for `attention.q_bias`; others stay."""
    found = _OLD.fullmatch(name)
    return name if found is None else f"{found[1]}.{found[2] or 'weight'}"


def modern_names(names: Iterable[str]) -> dict[str, str]:
    """The name in a file of every tensor, by the one that it has today."""
    return {modern_name(name): name for name in names}


def modern_value(name: str, value: Tensor, wanted: torch.Size, grid: torch.Size | None) -> Tensor:
    """A tensor in today's shape where it is in the one that it had; any other stays, for the reader to refuse."""
    was = value.shape == grid or (name.endswith("_scale") and value.numel() == wanted.numel())
    return value.reshape(wanted) if was else value


def modern_state(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict of today or of before as today's, for `model`."""
    shapes, wanted = grids(model), {name: value.shape for name, value in model.state_dict().items()}
    found = {modern_name(name): value for name, value in state.items()}
    return {
        name: modern_value(name, value, wanted[name], shapes.get(name)) if name in wanted else value
        for name, value in found.items()
    }


def read_old_state(model: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Hook of `load_state_dict`: change a state dict of before in place."""
    if f"{prefix}embedding" not in state:
        return
    own = {name: state.pop(name) for name in list(state) if name.startswith(prefix)}
    bare = {name.removeprefix(prefix): value for name, value in own.items()}
    state.update({f"{prefix}{name}": value for name, value in modern_state(bare, model).items()})
