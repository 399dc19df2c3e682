"""From the weights of a `Transformer` to those of a stock transformers class.

Letters: K KV heads, Q queries a group, D head_dim, H hidden; primed: of the stock model.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llmnas.export.shape import StockShape, copies
from llmnas.space import LayerSpec
from llmnas.supernet import Transformer


def stock_weights(model: Transformer, shape: StockShape, *, o_bias: bool) -> dict[str, Tensor]:
    """All parameters under transformers' names (Llama, Mistral, Qwen2 and Qwen3 share them).

    Args:
        model: a stand-alone network on the CPU; read only.
        shape: what `stock_shape` says of it.
        o_bias: the class wants a bias on the output projection; ours has none, so it is zero.

    Returns:
        Contiguous tensors of the model's dtype, some of them its own memory. A tied head is left out, as
        transformers stores it.
    """
    own = {name: parameter.detach() for name, parameter in model.named_parameters()}
    weights = {"model.embed_tokens.weight": own["embedding"], "model.norm.weight": own["norm"]}
    if "head" in own:
        weights["lm_head.weight"] = own["head"]
    for i, (_, spec) in enumerate(model.envelope.kept):
        prefix = f"layers.{i}."
        layer = {name.removeprefix(prefix): weight for name, weight in own.items() if name.startswith(prefix)}
        stock = _norms_and_ffn(layer, shape) | _attention(layer, spec, shape)
        if o_bias:
            stock["self_attn.o_proj.bias"] = torch.zeros(model.envelope.hidden_size)
        weights |= {f"model.{prefix}{name}": weight for name, weight in stock.items()}
    return {name: weight.contiguous() for name, weight in weights.items()}


def _norms_and_ffn(layer: dict[str, Tensor], shape: StockShape) -> dict[str, Tensor]:
    """A padded FFN channel gives silu(0) * 0 = 0."""
    return {
        "input_layernorm.weight": layer["mixer_norm"],
        "post_attention_layernorm.weight": layer["ffn_norm"],
        "mlp.gate_proj.weight": _pad(layer["ffn.gate"], 0, shape.spec.ffn_size),
        "mlp.up_proj.weight": _pad(layer["ffn.up"], 0, shape.spec.ffn_size),
        "mlp.down_proj.weight": _pad(layer["ffn.down"], 1, shape.spec.ffn_size),
    }


def _attention(layer: dict[str, Tensor], spec: LayerSpec, shape: StockShape) -> dict[str, Tensor]:
    """Projections, biases and QK norms of one layer.

    With a = sqrt(D' / D): stock scores are q k / sqrt(D') where ours are q k / sqrt(D), so q must grow
    by a. Under QK norm the input of both norms grows by it, since (a x) / sqrt(|a x|^2 / D' + eps)
    = a (x / sqrt(|x|^2 / D + eps)), eps included: that is the a of q, and the gain of k takes its own back.
    """
    stock, widen = shape.spec, math.sqrt(shape.spec.head_dim / spec.head_dim)
    qk_norm = "attention.q_norm" in layer
    weights = {"o_proj.weight": _queries(_pad(layer["attention.o"].movedim(0, -1), 2, stock.head_dim), spec, stock).T}
    for suffix, kind in (("", "weight"), ("_bias", "bias")):
        if f"attention.q{suffix}" in layer:
            q, k, v = (layer[f"attention.{name}{suffix}"] for name in "qkv")
            k = k * widen if qk_norm else k
            weights[f"q_proj.{kind}"] = _queries(_rotary(q * widen, 2, shape), spec, stock)
            weights[f"k_proj.{kind}"] = _keys(_rotary(k, 1, shape), spec, stock)
            weights[f"v_proj.{kind}"] = _keys(_pad(v, 1, stock.head_dim), spec, stock)
    if qk_norm:
        weights["q_norm.weight"] = _rotary(layer["attention.q_norm"], 0, shape)
        weights["k_norm.weight"] = _rotary(layer["attention.k_norm"] / widen, 0, shape)
    return {f"self_attn.{name}": weight for name, weight in weights.items()}


def _pad(x: Tensor, dim: int, size: int) -> Tensor:
    """Zeros after the end of one axis, up to `size`."""
    return F.pad(x, (0, 0) * (x.dim() - 1 - dim) + (0, size - x.shape[dim]))


def _rotary(x: Tensor, dim: int, shape: StockShape) -> Tensor:
    """[.., D, ..] -> [.., D', ..]: the adjacent pair i goes to channels (j, j + D' / 2), j = rope_pairs[i]."""
    j = torch.tensor(shape.rope_pairs[: x.shape[dim] // 2])
    channels = torch.stack([j, j + shape.spec.head_dim // 2], dim=1).flatten()
    sizes = list(x.shape)
    sizes[dim] = shape.spec.head_dim
    return x.new_zeros(sizes).index_copy(dim, channels, x)


def _queries(x: Tensor, spec: LayerSpec, stock: LayerSpec) -> Tensor:
    """[K, Q, D', ..] -> [K' Q' D', ..]: a group that is too large is split over copies of its KV head."""
    queries = stock.queries_per_group
    x = _pad(x, 1, copies(spec, queries) * queries)
    return _pad(x.reshape(-1, queries, *x.shape[2:]), 0, stock.kv_heads).flatten(0, 2)


def _keys(x: Tensor, spec: LayerSpec, stock: LayerSpec) -> Tensor:
    """[K, D', ..] -> [K' D', ..], with the copies that `_queries` splits over."""
    x = x.repeat_interleave(copies(spec, stock.queries_per_group), dim=0)
    return _pad(x, 0, stock.kv_heads).flatten(0, 1)
