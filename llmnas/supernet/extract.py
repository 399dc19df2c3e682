"""Cutting a sub-network out of a supernet: the same class, built smaller."""

from __future__ import annotations

from dataclasses import replace

import torch

from llmnas.space.architecture import Architecture, BaseModel, FixedShape
from llmnas.supernet.model import Transformer


def stand_alone_shape(base: BaseModel, rope_dim: int, arch: Architecture) -> FixedShape:
    """The shape of `arch` outside of its supernet: skips are gone, rotary frequencies stay."""
    return FixedShape(replace(base, rope_dim=rope_dim), arch.compact())


def extract(supernet: Transformer, arch: Architecture) -> Transformer:
    """A stand-alone copy of the sub-network, equal to it up to float rounding.

    Every dimension is a leading slice, so every parameter of the small network is the
    leading block of its namesake.
    """
    shape = stand_alone_shape(supernet.base, supernet.rope_dim, arch)
    with torch.device("meta"):
        small = Transformer(shape)
    source = dict(supernet.named_parameters())
    weights = {}
    for name, parameter in small.named_parameters():
        parts = name.split(".")
        if parts[0] == "layers":
            parts[1] = str(arch.kept[int(parts[1])][0])
        block = source[".".join(parts)].detach()[tuple(slice(size) for size in parameter.shape)]
        weights[name] = block.clone(memory_format=torch.contiguous_format)
    small.load_state_dict(weights, assign=True)
    return small.train(supernet.training)
