"""The tier for what no stock class holds: our own modeling file beside the weights of any architecture."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llmnas.export.configuration_llmnas import LlmnasConfig, StoredShape
from llmnas.export.modeling_llmnas import LlmnasForCausalLM
from llmnas.export.ship import SHELL
from llmnas.nn.lowbit import is_packed
from llmnas.nn.ternary import LOW_BIT, codes, scale_name, scale_of
from llmnas.supernet import Transformer
from llmnas.supernet.layouts import LOW_BIT_LAYOUTS
from llmnas.supernet.packed import FORMAT, has_packed

CLASS_NAME = LlmnasForCausalLM.__name__


def own_config(model: Transformer, eos_id: int | None, **more: Any) -> LlmnasConfig:
    """The config of float32 weights; `more` goes into config.json as it is."""
    base = replace(model.base, rope_dim=model.rope_dim)
    return LlmnasConfig(
        shape=StoredShape.to_dict(StoredShape(base, model.envelope, tuple(model.kinds))),
        architectures=[CLASS_NAME],
        packed=FORMAT if has_packed(model) else None,
        auto_map={
            "AutoConfig": f"{LlmnasConfig.__module__.rpartition('.')[2]}.{LlmnasConfig.__name__}",
            "AutoModelForCausalLM": f"{SHELL}.{CLASS_NAME}",
        },
        dtype="float32",
        bos_token_id=eos_id,
        eos_token_id=eos_id,
        pad_token_id=None,
        **more,
    )


def own_weights(model: Transformer) -> dict[str, Tensor]:
    """All parameters and buffers under the shell's names, every scale filled in.

    Packed weights are stored as they are. Of others, where a layer is read in one low-bit kind only, the values stored
    are those that it computes with, code times scale: reading them again gives the same codes, in float32 and after
    a cast to half precision too. Weights that are read in several ways stay latent.
    """
    stored = copy.deepcopy(model)
    for block, kinds in zip(stored.layers, stored.kinds, strict=True):
        only = kinds.weights[0] if len(kinds.weights) == 1 else None
        for module in block.modules():
            out_dims, matrices = LOW_BIT_LAYOUTS.get(type(module), ({}, 0))
            for name, out in out_dims.items():
                weight: Tensor = getattr(module, name)
                if is_packed(weight):
                    continue
                for kind in LOW_BIT:
                    if kind not in kinds.weights:
                        continue
                    scale = scale_of(module, name, kind, out, matrices)
                    module.get_buffer(scale_name(name, kind)).copy_(scale)
                    if kind == only:
                        with torch.no_grad():
                            weight.copy_(codes(weight, scale, kind) * scale)
    return {f"model.{name}": tensor.detach().contiguous() for name, tensor in stored.state_dict().items()}


def is_buffer(name: str) -> bool:
    """Whether a stored tensor is no parameter: the scale of a low-bit weight, the balance of experts."""
    return name.endswith(("_scale", ".balance"))
