"""A network whose ternary weights really take 2 bits and its binary ones 1: packed once, never quantised again.

The latent weights are gone, so such a network only reads. Its codes and scales are those of the network that it was
made of and its products sum the same integers, so on the CPU the logits are equal bit for bit. Dense layers, routers,
embedding and head stay as they are, and so does a low-bit weight whose inputs would cut a group. The matrices of
experts lie below one another, each with its own scale. Exported folders hold such networks and ship this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from llmnas.nn import kernels
from llmnas.nn.elastic_linear import ElasticLinear
from llmnas.nn.expert_linear import ExpertLinear
from llmnas.nn.lowbit import is_packed
from llmnas.nn.packed_linear import PackedExperts, PackedLinear, packed_like
from llmnas.nn.packed_products import unpacked
from llmnas.nn.ternary import scale_name
from llmnas.space.architecture import Architecture, BaseModel, FixedShape, Weights
from llmnas.supernet.model import Transformer

FORMAT = "llmnas packed 2"


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
    if model.embedding.weight.is_meta:
        return packed
    state, latent = model.state_dict(), dict(low_bit_layers(model))
    for path, layer in packed.named_modules():
        if isinstance(layer, PackedLinear | PackedExperts):
            state |= _packed_state(path, latent[path], layer.kind)
    return filled(packed, state)


def low_bit_layers(model: Transformer) -> Iterator[tuple[str, ElasticLinear | ExpertLinear]]:
    """Path and layer of every latent weight of a network that is read in low-bit kinds."""
    for path, layer in model.named_modules():
        if isinstance(layer, ElasticLinear | ExpertLinear) and layer.kinds:
            yield path, layer


def packable(model: Transformer) -> bool:
    """Whether there is something to pack, and `pack` takes it."""
    if has_packed(model) or any(len(kinds.weights) > 1 or len(kinds.mixers) > 1 for kinds in model.kinds):
        return False
    return any(packed_like(layer, layer.kinds[0]) is not None for _, layer in low_bit_layers(model))


def unpack(model: Transformer) -> Transformer:
    """A packed network in floats again, code times scale: a beginning for training. Nothing is shared with `model`.

    In float32 the logits are the same; in another dtype the scales are rounded to it, as all other weights are.
    """
    with torch.device("meta"):
        plain = Transformer(FixedShape(model.base, model.envelope), seed=None)
    state, dtype = {name: value.clone() for name, value in model.state_dict().items()}, model.embedding.weight.dtype
    for path, layer in model.named_modules():
        if isinstance(layer, PackedLinear | PackedExperts):
            scale = layer.scale(layer.kind).to(dtype)
            state[f"{path}.{scale_name(layer.kind)}"] = scale
            state[f"{path}.weight"] = unpacked(layer.weight).view(layer.shape).to(dtype) * scale
    plain.load_state_dict(state, assign=True)
    return plain.train(model.training)


def has_packed(model: Transformer) -> bool:
    """Whether any weight of a network is packed."""
    return any(is_packed(value) for value in model.buffers())


def empty_packed(base: BaseModel, arch: Architecture) -> Transformer:
    """The packed network without values, on the meta device: packed weights as integers, their scales in float32."""
    with torch.device("meta"):
        model = Transformer(FixedShape(base, arch), seed=None)
    for path, layer in list(low_bit_layers(model)):
        packed = packed_like(layer, layer.kinds[0])
        if packed is not None:
            model.set_submodule(path, packed)
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
    for path, layer in model.named_modules():
        if not isinstance(layer, PackedLinear | PackedExperts) or layer.weight.is_meta:
            continue
        if layer.kind == "ternary":
            try:
                kernels.check_codes(layer.weight)
            except ValueError as error:
                raise ValueError(f"{prefix}{path}.weight: {error}") from None
        scale = layer.scale(layer.kind)
        if wrong := scale[~((scale > 0) & scale.isfinite())].tolist():
            name = f"{prefix}{path}.{scale_name(layer.kind)}"
            raise ValueError(f"{name}: holds {wrong[0]}, must hold positive numbers")


def _packed_state(path: str, layer: ElasticLinear | ExpertLinear, kind: Weights) -> dict[str, Tensor]:
    """Packed rows of as many matrices, one below another, as there are scales; and those."""
    scale, latent = layer.scale(kind).float(), layer.weight.detach().flatten(0, -2)
    if kind == "binary":
        packed = kernels.pack_signs(latent)
    else:
        parts = zip(latent.chunk(scale.numel()), scale.flatten(), strict=True)
        packed = torch.cat([kernels.pack(part, one).codes for part, one in parts])
    return {f"{path}.weight": packed, f"{path}.{scale_name(kind)}": scale}
