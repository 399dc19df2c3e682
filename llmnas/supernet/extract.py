"""Cutting a sub-network out of a supernet: the same class, built smaller."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llmnas.nn.elastic_linear import grids
from llmnas.space.architecture import Architecture, BaseModel, FixedShape, require_fit
from llmnas.supernet.model import Transformer


def stand_alone_shape(base: BaseModel, rope_dim: int, arch: Architecture) -> FixedShape:
    """The shape of `arch` outside of its supernet: skips are gone, rotary frequencies stay."""
    layer_rope = base.layer_rope and base.layer_rope.among([i for i, _ in arch.kept])
    return FixedShape(replace(base, rope_dim=rope_dim, layer_rope=layer_rope), arch.compact())


def extract(supernet: Transformer, arch: Architecture) -> Transformer:
    """A stand-alone copy of the sub-network, equal to it up to float rounding.

    Every dimension is a leading slice, so every tensor of the small network is the leading block of its
    namesake; a dense feed-forward is the first expert. Low-bit weights keep their supernet's scale.

    Raises:
        ValueError: the weights cannot serve the architecture.
    """
    require_fit(supernet, arch)
    shape = stand_alone_shape(supernet.base, supernet.rope_dim, arch)
    with torch.device("meta"):
        small = Transformer(shape)
    source, modules = supernet.state_dict(), dict[str, Any](supernet.named_modules())
    stored, wanted = grids(supernet), grids(small)
    state: dict[str, Tensor] = {}
    for name, tensor in small.state_dict().items():
        namesake = _namesake(name, arch)
        path, _, last = namesake.rpartition(".")
        kind = last.removesuffix("_scale")
        whole = source[namesake] if kind == last else modules[path].scale(kind)
        whole = whole.detach().view(stored.get(namesake, whole.shape))
        state[name] = _leading(whole, wanted.get(name, tensor.shape)).view(tensor.shape)
    small.load_state_dict(state, assign=True)
    return small.train(supernet.training)


def _namesake(name: str, arch: Architecture) -> str:
    parts = name.split(".")
    if parts[0] == "layers" and len(parts) > 1:
        parts[1] = str(arch.kept[int(parts[1])][0])
    return ".".join(parts)


def _leading(tensor: Tensor, shape: torch.Size) -> Tensor:
    """A copy of the leading block; of the first expert where the small layer has no axis for experts."""
    tensor = tensor[0] if tensor.dim() > len(shape) else tensor
    return tensor[tuple(slice(size) for size in shape)].clone(memory_format=torch.contiguous_format)
