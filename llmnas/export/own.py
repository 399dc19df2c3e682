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
from llmnas.nn.ternary import codes, scale_name
from llmnas.supernet import Transformer
from llmnas.supernet.packed import FORMAT, has_packed, low_bit_layers

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
    for path, layer in low_bit_layers(stored):
        several = len(stored.kinds[int(path.split(".")[1])].weights) > 1
        for kind in layer.kinds:
            scale = layer.scale(kind)
            layer.get_buffer(scale_name(kind)).copy_(scale)
            if not several:
                with torch.no_grad():
                    layer.weight.copy_(codes(layer.weight, scale, kind) * scale)
    return {f"model.{name}": tensor.detach().contiguous() for name, tensor in stored.state_dict().items()}


def is_buffer(name: str) -> bool:
    """Whether a stored tensor is no parameter: the scale of a low-bit weight, the balance of experts."""
    return name.endswith(("_scale", ".balance"))
