"""A network whose ternary weights really take 2 bits and its binary ones 1: packed once, never quantised again.

The latent weights are gone, so such a network only reads. Its codes and scales are those of the network that it was
made of and its products sum the same integers, so on the CPU the logits are equal bit for bit. Dense layers, routers,
embedding and head stay as they are. The matrices of experts lie below one another, each with its own scale.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from llmnas.errors import UserError
from llmnas.files import atomic_open
from llmnas.nn import kernels
from llmnas.nn.lowbit import PACKED, is_packed
from llmnas.nn.ternary import scale_name, scale_of
from llmnas.space.architecture import Architecture, BaseModel, FixedShape, LayerSpec, Weights
from llmnas.supernet.extract import LOW_BIT_LAYOUTS
from llmnas.supernet.model import Transformer

FORMAT = "llmnas packed 2"
GROUPS = {"ternary": kernels.GROUP, "binary": kernels.WORD}


def pack(model: Transformer) -> Transformer:
    """A stand-alone network with its low-bit weights packed; the other tensors are shared with `model`.

    Raises:
        ValueError: a supernet, a network that is packed already, or a weight whose inputs are no multiple of 64
            (binary: 32).
    """
    if any(is_packed(value) for value in model.buffers()):
        raise ValueError("this network is packed already")
    for i, kinds in enumerate(model.kinds):
        if len(kinds.weights) > 1 or len(kinds.mixers) > 1:
            raise ValueError(f"layer {i} holds several kinds of weights: extract a network, then pack it")
    base = replace(model.base, rope_dim=model.rope_dim)
    packed = _skeleton(base, model.envelope)
    state, modules = model.state_dict(), dict(model.named_modules())
    for path, name, kind, out, matrices in _low_bit_weights(packed):
        module = modules[path]
        scale = scale_of(module, name, kind, out, matrices).float()
        latent = getattr(module, name).detach().flatten(out).flatten(0, out - 1)
        state[f"{path}.{name}"] = _codes(latent, scale) if kind == "ternary" else kernels.pack_signs(latent)
        state[f"{path}.{scale_name(name, kind)}"] = scale
    return _filled(packed, state)


def packable(model: Transformer) -> bool:
    """Whether there is something to pack, and `pack` takes it."""
    low_bit = [spec for _, spec in model.envelope.kept if spec.weights != "dense"]
    alone = all(len(kinds.weights) == 1 == len(kinds.mixers) for kinds in model.kinds)
    if not low_bit or not alone:
        return False

    def whole(spec: LayerSpec) -> bool:
        widths = [model.envelope.hidden_size, spec.ffn_size]
        widths += [spec.q_heads * spec.head_dim] if spec.mixer != "none" else []
        return all(width % GROUPS[spec.weights] == 0 for width in widths)

    return all(whole(spec) for spec in low_bit)


def save_packed(model: Transformer, path: Path) -> None:
    """Write a packed network, with what it is, in one safetensors file (whole or not at all)."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    about = {"format": FORMAT, "architecture": model.envelope.to_json(), "base": json.dumps(asdict(model.base))}
    with atomic_open(path) as stream:
        stream.write(save(tensors, about))


def load_packed(path: Path) -> Transformer:
    """Read what `save_packed` wrote; codes and scales are taken as they are.

    Raises:
        UserError: no such file, a damaged one, another format, or a code that no ternary weight has.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except SafetensorError as error:
        raise UserError(f"{path}: damaged weights ({error})") from None
    if about.get("format") != FORMAT:
        raise UserError(f"{path}: format {about.get('format')!r}, must be {FORMAT!r} (written by save_packed)")
    try:
        model = _skeleton(BaseModel(**json.loads(about["base"])), Architecture.from_json(about["architecture"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: its description of the network is damaged ({error})") from None
    for name, wanted in model.state_dict().items():
        found = state.get(name)
        packed = wanted.dtype if is_packed(wanted) else None
        if found is None or found.shape != wanted.shape or (found.dtype if is_packed(found) else None) != packed:
            what = "missing" if found is None else f"{list(found.shape)} of {found.dtype}"
            raise UserError(f"{path}: {name} is {what}, must be {list(wanted.shape)} of {wanted.dtype}")
        if found.dtype == torch.uint8:
            try:
                kernels.check_codes(found)
            except ValueError as error:
                raise UserError(f"{path}: {name}: {error}") from None
    if extra := sorted(state.keys() - model.state_dict().keys()):
        raise UserError(f"{path}: {extra[0]} belongs to no weight of the network that it describes")
    return _filled(model, state)


def _skeleton(base: BaseModel, arch: Architecture) -> Transformer:
    """The network without values, packed weights as integers.

    Raises:
        ValueError: a low-bit weight that cannot be packed.
    """
    with torch.device("meta"):
        model = Transformer(FixedShape(base, arch))
    modules = dict(model.named_modules())
    for path, name, kind, out, _ in _low_bit_weights(model):
        weight: Tensor = getattr(modules[path], name)
        rows, columns, group = weight.shape[:out].numel(), weight.shape[out:].numel(), GROUPS[kind]
        if columns % group:
            raise ValueError(
                f"{path}.{name}: {columns} inputs cut a group, a packed weight needs a multiple of {group}"
            )
        dtype, each = next((dtype, each) for dtype, (held, each) in PACKED.items() if held == kind)
        _become_codes(modules[path], name, torch.empty(rows, columns // each, dtype=dtype, device="meta"))
    return model


def _low_bit_weights(model: Transformer) -> Iterator[tuple[str, str, Weights, int, int]]:
    """(path of the module, name, kind, axes that are outputs, those of them that tell matrices apart) of every low-bit
    weight."""
    for i, (_, spec) in enumerate(model.envelope.kept):
        if spec.weights == "dense":
            continue
        for path, module in model.layers[i].named_modules(prefix=f"layers.{i}"):
            out_dims, matrices = LOW_BIT_LAYOUTS.get(type(module), ({}, 0))
            for name, out in out_dims.items():
                yield path, name, spec.weights, out, matrices


def _codes(latent: Tensor, scale: Tensor) -> Tensor:
    """Packed rows of as many matrices, one below another, as there are scales."""
    parts = latent.chunk(scale.numel())
    return torch.cat([kernels.pack(part, one).codes for part, one in zip(parts, scale.flatten(), strict=True)])


def _become_codes(module: nn.Module, name: str, codes: Tensor) -> None:
    """A parameter becomes a buffer of codes."""
    del module._parameters[name]
    module.register_buffer(name, codes)


def _filled(model: Transformer, state: dict[str, Tensor]) -> Transformer:
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()
