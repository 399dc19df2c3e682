"""Ternary networks as `BitNetForCausalLM` checkpoints with the `bitnet` quantisation of transformers.

A weight is stored as its codes, two bits each: uint8 [out / 4, in], code + 1 of rows r, r + out / 4, ... in bits 0,
2, ... of byte row r. `BitLinear` divides by `weight_scale`, so that is 1 / gamma. Codes and scale are what is stored:
saving a loaded checkpoint again quantises nothing and gives the same bytes.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, BitNetQuantConfig

from llmnas.errors import UserError
from llmnas.export.config import common_keys
from llmnas.export.shape import StockShape, stock_shape
from llmnas.export.weights import stock_weights
from llmnas.nn.ternary import codes
from llmnas.space import Architecture, BaseModel
from llmnas.supernet import Transformer
from llmnas.supernet.packed import low_bit_layers

BITNET = "BitNetForCausalLM"
CODES_A_BYTE = 4
_LINEAR = {
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}


def dense_twin(arch: Architecture) -> Architecture:
    """The same sizes with dense weights."""
    layers = tuple(spec and replace(spec, weights="dense") for spec in arch.layers)
    return Architecture(arch.hidden_size, layers)


def bitnet_shape(base: BaseModel, arch: Architecture) -> StockShape:
    """The sizes of the BitNet model that computes `arch`.

    A norm over the heads and one over the FFN precede the output projections, so nothing can be padded, and dense
    layers, which have no such norms, cannot stand among ternary ones (`modules_to_not_convert` leaves the norms in).

    Raises:
        UserError: not a BitNet model, with the layer and the reason.
    """
    for i, spec in arch.kept:
        if (spec.weights, spec.mixer, spec.experts) != ("ternary", "attention", 1):
            raise UserError(
                f"export: layer {i} has {spec.weights} weights, mixer {spec.mixer} and {spec.experts} experts; "
                "a BitNet model has ternary weights, attention and one feed-forward in every layer"
            )
        for name, rows in (
            ("hidden_size", arch.hidden_size), ("kv_heads x head_dim", spec.kv_heads * spec.head_dim),
            ("ffn_size", spec.ffn_size),
        ):  # fmt: skip
            if rows % CODES_A_BYTE:
                raise UserError(f"export: layer {i}: BitNet packs 4 rows into a byte, {name} is {rows}")
        if spec.q_heads * spec.head_dim != arch.hidden_size:
            raise UserError(
                f"export: layer {i}: BitNet norms the heads over hidden_size = {arch.hidden_size}, here they are "
                f"{spec.q_heads} x {spec.head_dim} wide"
            )
    if base.qk_norm:
        raise UserError("export: BitNet has no QK norm")
    shape = stock_shape(base, dense_twin(arch))
    if not shape.exact:
        raise UserError(
            "export: BitNet has the same sizes in every layer and norms over them, so nothing can be padded"
        )
    return shape


def bitnet_config(base: BaseModel, arch: Architecture, shape: StockShape, eos_id: int | None) -> Any:
    """`BitNetConfig` with SwiGLU's own activation and the packed, offline quantisation."""
    spec = shape.spec
    return AutoConfig.for_model(
        "bitnet",
        **common_keys(base, arch, BITNET, shape.rope_theta, eos_id),
        num_attention_heads=spec.q_heads,
        num_key_value_heads=spec.kv_heads,
        intermediate_size=spec.ffn_size,
        hidden_act="silu",
        attention_bias=base.qkv_bias,
        quantization_config=BitNetQuantConfig(
            modules_to_not_convert=["lm_head"], linear_class="bitlinear", quantization_mode="offline"
        ).to_dict(),
    )


def coded_weights(model: Transformer, shape: StockShape) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters under the names of `BitNetForCausalLM`, linear layers as codes {-1, 0, 1}; and gamma of each layer."""
    coded = copy.deepcopy(model)
    gammas: dict[str, Tensor] = {}
    for path, layer in low_bit_layers(coded):
        scale, (_, i, name) = layer.scale("ternary"), path.split(".", 2)
        with torch.no_grad():
            layer.weight.copy_(codes(layer.weight, scale, "ternary"))
        gammas[f"model.layers.{i}.{_LINEAR[name]}"] = scale.reshape(1)
    weights = stock_weights(coded, shape, o_bias=model.base.qkv_bias)
    for name, gain in model.named_parameters():
        if name.endswith(".inner_norm"):
            norm = "self_attn.attn_sub_norm" if ".attention." in name else "mlp.ffn_sub_norm"
            weights[f"model.layers.{name.split('.')[1]}.{norm}.weight"] = gain.detach().flatten().clone()
    return weights, gammas


def bitnet_weights(model: Transformer, shape: StockShape) -> dict[str, Tensor]:
    """What lies in the checkpoint: packed codes, `weight_scale` = 1 / gamma, norms and embeddings in float32."""
    weights, gammas = coded_weights(model, shape)
    for layer, gamma in gammas.items():
        weights[f"{layer}.weight"] = pack(weights[f"{layer}.weight"])
        weights[f"{layer}.weight_scale"] = 1 / gamma
    return weights


def pack(ternary: Tensor) -> Tensor:
    """{-1, 0, 1} [out, in], out a multiple of 4 -> uint8 [out / 4, in]."""
    fields = (ternary + 1).to(torch.uint8).view(CODES_A_BYTE, -1, ternary.shape[1])
    packed = fields[0].clone()
    for i in range(1, CODES_A_BYTE):
        packed |= fields[i] << 2 * i
    return packed
