"""Cutting a sub-network out of a supernet: the same class, built smaller."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from llmnas.nn.ternary import LOW_BIT, scale_name, scale_of
from llmnas.space.architecture import Architecture, BaseModel, FixedShape, require_fit
from llmnas.supernet.layouts import LOW_BIT_LAYOUTS
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
    source, modules = supernet.state_dict(), dict(supernet.named_modules())
    state: dict[str, Tensor] = {}
    for name, tensor in small.state_dict().items():
        if not name.endswith("_scale"):
            state[name] = _leading(source[_namesake(name, arch)], tensor.shape)
    for name, module in small.named_modules():
        if type(module) in LOW_BIT_LAYOUTS:
            state |= _scales(name, module, modules[_namesake(name, arch)])
    small.load_state_dict(state, assign=True)
    return small.train(supernet.training)


def _namesake(name: str, arch: Architecture) -> str:
    parts = name.split(".")
    if parts[0] == "layers" and len(parts) > 1:
        parts[1] = str(arch.kept[int(parts[1])][0])
    return ".".join(parts)


def _leading(tensor: Tensor, shape: torch.Size) -> Tensor:
    """A copy of the leading block; of the first expert where the small layer has no axis for experts."""
    tensor = tensor.detach()
    tensor = tensor[0] if tensor.dim() > len(shape) else tensor
    return tensor[tuple(slice(size) for size in shape)].clone(memory_format=torch.contiguous_format)


def _scales(name: str, small: nn.Module, source: nn.Module) -> dict[str, Tensor]:
    """The supernet's scales for the low-bit weights of one cut-out module."""
    found: dict[str, Tensor] = {}
    wanted = dict(small.named_buffers(recurse=False))
    out_dims, matrices = LOW_BIT_LAYOUTS[type(source)]
    for weight, out in out_dims.items():
        for kind in LOW_BIT:
            buffer = scale_name(weight, kind)
            if buffer in wanted:
                full = scale_of(source, weight, kind, out, matrices)
                found[f"{name}.{buffer}"] = _leading(full, wanted[buffer].shape)
    return found
