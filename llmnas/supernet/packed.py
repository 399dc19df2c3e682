"""A network whose ternary weights really take 2 bits and its binary ones 1: packed once, never quantised again.

The latent weights are gone, so such a network only reads. Its codes and scales are those of the network that it was
made of and its products sum the same integers, so on the CPU the logits are equal bit for bit. Dense layers, routers,
embedding and head stay as they are, and so does a low-bit weight whose inputs would cut a group. The matrices of
experts lie below one another, each with its own scale. Exported folders hold such networks and ship this file.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from llmnas.nn import kernels
from llmnas.nn.lowbit import PACKED, is_packed
from llmnas.nn.packed_products import unpacked
from llmnas.nn.ternary import scale_name, scale_of
from llmnas.space.architecture import Architecture, BaseModel, FixedShape
from llmnas.supernet.layouts import low_bit_weights
from llmnas.supernet.model import Transformer

FORMAT = "llmnas packed 2"
GROUPS = {"ternary": kernels.GROUP, "binary": kernels.WORD}
"""A weight is packed where the number of its inputs is a multiple of this."""


def pack(model: Transformer) -> Transformer:
    """A stand-alone network with its low-bit weights packed; the other tensors are shared with `model`.

    Weights whose inputs are no multiple of 64 (binary: 32) stay as they are. On the meta device nothing has values.

    Raises:
        ValueError: a supernet, a network that is packed already, or one without a weight that can be packed.
    """
    if has_packed(model):
        raise ValueError("this network is packed already")
    for i, kinds in enumerate(model.kinds):
        if len(kinds.weights) > 1 or len(kinds.mixers) > 1:
            raise ValueError(f"layer {i} holds several kinds of weights: extract a network, then pack it")
    packed = empty_packed(replace(model.base, rope_dim=model.rope_dim), model.envelope)
    if not has_packed(packed):
        raise ValueError(
            "no weight of this network can be packed: that takes inputs in multiples of 64 (ternary) or 32 (binary)"
        )
    if model.embedding.is_meta:
        return packed
    state, modules, empty = model.state_dict(), dict(model.named_modules()), packed.state_dict()
    for path, name, kind, out, matrices in low_bit_weights(packed):
        if is_packed(empty[f"{path}.{name}"]):
            module = modules[path]
            scale = scale_of(module, name, kind, out, matrices).float()
            latent = getattr(module, name).detach().flatten(out).flatten(0, out - 1)
            state[f"{path}.{name}"] = _codes(latent, scale) if kind == "ternary" else kernels.pack_signs(latent)
            state[f"{path}.{scale_name(name, kind)}"] = scale
    return filled(packed, state)


def packable(model: Transformer) -> bool:
    """Whether there is something to pack, and `pack` takes it."""
    if has_packed(model) or any(len(kinds.weights) > 1 or len(kinds.mixers) > 1 for kinds in model.kinds):
        return False
    modules = dict(model.named_modules())
    return any(
        _fits(getattr(modules[path], name).shape[out:].numel(), kind)
        for path, name, kind, out, _ in low_bit_weights(model)
    )


def unpack(model: Transformer) -> Transformer:
    """A packed network in floats again, code times scale: a beginning for training. Nothing is shared with `model`.

    In float32 the logits are the same; in another dtype the scales are rounded to it, as all other weights are.
    """
    with torch.device("meta"):
        plain = Transformer(FixedShape(model.base, model.envelope), seed=None)
    state, shapes = {name: value.clone() for name, value in model.state_dict().items()}, plain.state_dict()
    for path, name, kind, _, _ in low_bit_weights(model):
        key, beside = f"{path}.{name}", f"{path}.{scale_name(name, kind)}"
        if is_packed(state[key]):
            state[beside] = state[beside].to(model.embedding.dtype)
            held = unpacked(state[key]).view(shapes[key].shape)
            state[key] = held.to(model.embedding.dtype) * state[beside]
    plain.load_state_dict(state, assign=True)
    return plain.train(model.training)


def has_packed(model: Transformer) -> bool:
    """Whether any weight of a network is packed."""
    return any(is_packed(value) for value in model.buffers())


def empty_packed(base: BaseModel, arch: Architecture) -> Transformer:
    """The packed network without values, on the meta device: packed weights as integers, their scales in float32."""
    with torch.device("meta"):
        model = Transformer(FixedShape(base, arch), seed=None)
    modules = dict(model.named_modules())
    for path, name, kind, out, _ in low_bit_weights(model):
        module = modules[path]
        weight: Tensor = getattr(module, name)
        rows, columns = weight.shape[:out].numel(), weight.shape[out:].numel()
        if _fits(columns, kind):
            dtype, each = next((dtype, each) for dtype, (held, each) in PACKED.items() if held == kind)
            del module._parameters[name]
            module.register_buffer(name, torch.empty(rows, columns // each, dtype=dtype, device="meta"))
            scale = scale_name(name, kind)
            # in half precision it would be another network, and saving it again would store the rounded scale
            module.register_buffer(scale, module.get_buffer(scale).float())
    return model


def filled(model: Transformer, state: dict[str, Tensor]) -> Transformer:
    """`empty_packed` with values; nothing of it is trained."""
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def check_values(model: Transformer, prefix: str = "") -> None:
    """Refuse packed weights that cannot be: a code that no ternary weight has, a scale that is no positive number.

    Raises:
        ValueError: names the first one, as it is called in its file: with `prefix`.
    """
    state = model.state_dict()
    for path, name, kind, _, _ in low_bit_weights(model):
        key, beside = f"{path}.{name}", f"{path}.{scale_name(name, kind)}"
        if not is_packed(state[key]) or state[key].is_meta:
            continue
        if kind == "ternary":
            try:
                kernels.check_codes(state[key])
            except ValueError as error:
                raise ValueError(f"{prefix}{key}: {error}") from None
        scale = state[beside]
        if wrong := scale[~((scale > 0) & scale.isfinite())].tolist():
            raise ValueError(f"{prefix}{beside}: holds {wrong[0]}, must hold positive numbers")


def _fits(inputs: int, kind: str) -> bool:
    return inputs % GROUPS[kind] == 0


def _codes(latent: Tensor, scale: Tensor) -> Tensor:
    """Packed rows of as many matrices, one below another, as there are scales."""
    parts = latent.chunk(scale.numel())
    return torch.cat([kernels.pack(part, one).codes for part, one in zip(parts, scale.flatten(), strict=True)])
