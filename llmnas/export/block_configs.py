"""Checkpoints with `block_configs`, the layout of DeciLM and Nemotron-NAS that vLLM reads: sizes by layer.

Written after vLLM's `nemotron_nas.py`. A block says how many query heads share a KV head (`n_heads_in_group`) and how
wide its FFN is, as int(2 ffn_mult hidden / 3) rounded up to a multiple of 256. All layers have the same number of query
heads and the same head_dim, so those are padded to the largest; KV heads and FFN sizes stay those of the layer, up to
these rules. A layer without a mixer is a block whose attention is a no-op, but for the first one: vLLM begins its
residual stream in the attention of layer 0, which then reads and writes nothing.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from llmnas.errors import UserError
from llmnas.export.config import common_keys
from llmnas.export.configuration_decilm import FFN_STEP, DeciLMConfig
from llmnas.export.layout import Layout, stock_reason
from llmnas.export.modeling_decilm import DeciLMForCausalLM
from llmnas.export.shape import StockShape, copies, stock_shape
from llmnas.export.ship import shipped_files
from llmnas.export.weights import stock_weights
from llmnas.space import Architecture, BaseModel, LayerSpec
from llmnas.supernet import Transformer

CLASS_NAME = DeciLMForCausalLM.__name__
_ELSE = "block_configs cannot say that; use --format hf"


def lay_out_blocks(model: Transformer, eos_id: int | None) -> Layout:
    """The layout of a stand-alone model, float32 on the CPU.

    Raises:
        UserError: layers that the format does not know, with the reason.
    """
    base, arch = replace(model.base, rope_dim=model.rope_dim), model.envelope
    reason = stock_reason(model)
    if reason is not None:
        raise UserError(f"{reason}; {_ELSE}")
    shapes = block_shapes(base, arch)
    return Layout(
        CLASS_NAME, _config(base, arch, shapes, eos_id), block_weights(model, shapes), None, None,
        shipped_files(DeciLMForCausalLM.__module__), shapes,
    )  # fmt: skip


def block_shapes(base: BaseModel, arch: Architecture) -> tuple[StockShape, ...]:
    """The sizes of each layer as the format can say them.

    Raises:
        UserError: layers that the format does not know, with the reason.
    """
    if base.qk_norm:
        raise UserError(f"export: the model has a QK norm; {_ELSE}")
    shape = stock_shape(base, arch)
    if shape.experts:
        layer = next(i for i, spec in arch.kept if spec.experts > 1)
        raise UserError(f"export: layer {layer} has experts; {_ELSE}")
    specs = [spec for _, spec in arch.kept]
    q_heads = max(spec.q_heads for spec in specs)
    return tuple(replace(shape, spec=_block(spec, q_heads, shape.spec.head_dim)) for spec in specs)


def _block(spec: LayerSpec, q_heads: int, head_dim: int) -> LayerSpec:
    """The fewest KV heads, all groups of one size that divides `q_heads`, that hold those of the layer."""
    fitting = [g for g in range(1, q_heads + 1) if q_heads % g == 0 and spec.kv_heads * copies(spec, g) * g <= q_heads]
    group = max(fitting)  # one query a group always fits
    return LayerSpec(q_heads // group, group, head_dim, FFN_STEP * math.ceil(spec.ffn_size / FFN_STEP))


def _config(base: BaseModel, arch: Architecture, shapes: tuple[StockShape, ...], eos_id: int | None) -> DeciLMConfig:
    first = shapes[0]
    return DeciLMConfig(
        [
            _entry(shape.spec, arch.hidden_size, no_op=_idle(i, own))
            for i, ((_, own), shape) in enumerate(zip(arch.kept, shapes, strict=True))
        ],
        **common_keys(base, arch, CLASS_NAME, first.rope_theta, eos_id),
        auto_map={
            "AutoConfig": f"{_file(DeciLMConfig)}.{DeciLMConfig.__name__}",
            "AutoModelForCausalLM": f"{_file(DeciLMForCausalLM)}.{CLASS_NAME}",
        },
        num_attention_heads=first.spec.q_heads,
        num_key_value_heads=max(shape.spec.kv_heads for shape in shapes),
        head_dim=first.spec.head_dim,
        intermediate_size=max(shape.spec.ffn_size for shape in shapes),
        hidden_act="silu",
        attention_bias=base.qkv_bias,
        mlp_bias=False,
    )


def _file(shipped: type) -> str:
    return shipped.__module__.rpartition(".")[2]


def _idle(place: int, spec: LayerSpec) -> bool:
    return spec.mixer == "none" and place > 0


def _entry(stored: LayerSpec, hidden_size: int, *, no_op: bool) -> dict[str, Any]:
    idle = {"no_op": False, "replace_with_linear": False}
    return {
        "attention": idle | {"no_op": no_op, "n_heads_in_group": None if no_op else stored.queries_per_group},
        "ffn": idle | {"ffn_mult": 3 * stored.ffn_size / (2 * hidden_size)},
    }


def block_weights(model: Transformer, shapes: tuple[StockShape, ...]) -> dict[str, Tensor]:
    """Llama's names; a block without attention has neither its projections nor its norm."""
    weights = stock_weights(model, shapes[0], o_bias=model.base.qkv_bias, shapes=shapes)
    idle = [f"model.layers.{i}." for i, (_, spec) in enumerate(model.envelope.kept) if _idle(i, spec)]
    unused = tuple(f"{layer}{part}" for layer in idle for part in ("self_attn.", "input_layernorm."))
    return {name: weight for name, weight in weights.items() if not (unused and name.startswith(unused))}
