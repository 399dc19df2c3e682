"""From the weights of a `Transformer` to those of a stock transformers class.

Letters: K KV heads, Q queries a group, D head_dim, H hidden; primed: of the stock model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llmnas.export.shape import StockShape, copies
from llmnas.nn.elastic_linear import grids
from llmnas.space import LayerSpec
from llmnas.supernet import Transformer

_SWIGLU = ("gate", "up", "down")
_MIXTRAL = ("w1", "w3", "w2")  # its names on disk for the same three


def stock_weights(
    model: Transformer, shape: StockShape, *, o_bias: bool, shapes: Sequence[StockShape] | None = None
) -> dict[str, Tensor]:
    """All parameters under the names that published checkpoints have on disk.

    Experts lie one by one there; transformers 5 stacks them while it loads.

    Args:
        model: a stand-alone network on the CPU; read only.
        shape: what `stock_shape` says of it.
        shapes: one a layer, for formats whose layers differ; None for `shape` everywhere.
        o_bias: the class wants a bias on the output projection; ours has none, so it is zero.

    Returns:
        Contiguous tensors of the model's dtype, some of them its own memory. A tied head is left out, as
        transformers stores it.
    """
    sliced = grids(model)
    own = {name: weight.detach().view(sliced.get(name, weight.shape)) for name, weight in model.named_parameters()}
    weights = {"model.embed_tokens.weight": own["embedding.weight"], "model.norm.weight": own["norm"]}
    if "head.weight" in own:
        weights["lm_head.weight"] = own["head.weight"]
    for i, (_, spec) in enumerate(model.envelope.kept):
        stock_layer = shape if shapes is None else shapes[i]
        prefix = f"layers.{i}."
        layer = {name.removeprefix(prefix): weight for name, weight in own.items() if name.startswith(prefix)}
        if spec.mixer == "none":
            layer |= _no_mixer(layer, qk_norm=model.base.qk_norm, qkv_bias=model.base.qkv_bias)
        stock = {
            "input_layernorm.weight": layer["mixer_norm"],
            "post_attention_layernorm.weight": layer["ffn_norm"],
        }
        stock |= _feed_forward(layer, spec, stock_layer) | _attention(layer, spec, stock_layer)
        if o_bias:
            stock["self_attn.o_proj.bias"] = torch.zeros(model.envelope.hidden_size)
        weights |= {f"model.{prefix}{name}": weight for name, weight in stock.items()}
    return {name: weight.contiguous() for name, weight in weights.items()}


def _no_mixer(layer: dict[str, Tensor], *, qk_norm: bool, qkv_bias: bool) -> dict[str, Tensor]:
    """One head that reads and writes nothing, under the names of an attention layer."""
    hidden_size = layer["ffn_norm"].shape[0]
    nothing = layer["ffn_norm"].new_zeros
    one: dict[str, tuple[int, ...]] = {"q": (1, 1, 2), "k": (1, 2), "v": (1, 2)}
    found = {f"attention.{name}.weight": nothing(*size, hidden_size) for name, size in one.items()}
    found |= {"mixer_norm": torch.ones_like(layer["ffn_norm"]), "attention.o.weight": nothing(hidden_size, *one["q"])}
    if qkv_bias:
        found |= {f"attention.{name}.bias": nothing(*size) for name, size in one.items()}
    if qk_norm:
        found |= {f"attention.{name}_norm": nothing(2) for name in "qk"}
    return found


def _feed_forward(layer: dict[str, Tensor], spec: LayerSpec, shape: StockShape) -> dict[str, Tensor]:
    """A padded channel gives silu(0) * 0 = 0; how experts are repeated is said in `experts`."""
    grid = shape.experts
    if grid is None or not grid.has_router(spec):
        size = shape.spec.ffn_size
        return {f"mlp.{name}_proj.weight": _pad(layer[f"ffn.{name}.weight"], name == "down", size) for name in _SWIGLU}
    if spec.experts == 1:  # equal experts, whichever are chosen: their weights sum to one
        stacked = {name: layer[f"ffn.{name}.weight"].expand(grid.experts, -1, -1) for name in _SWIGLU}
        router = layer["ffn_norm"].new_zeros(grid.experts, layer["ffn_norm"].shape[0])
    else:
        copies_of_each = grid.experts // spec.experts
        stacked = {name: layer[f"ffn.{name}.weight"].repeat_interleave(copies_of_each, 0) for name in _SWIGLU}
        router = layer["ffn.router.weight"].repeat_interleave(copies_of_each, 0)
    room, names = ("mlp", _SWIGLU) if grid.kind == "qwen3_moe" else ("block_sparse_moe", _MIXTRAL)
    found = {f"{room}.gate.weight": router}
    for name, theirs in zip(_SWIGLU, names, strict=True):
        for e, weight in enumerate(_pad(stacked[name], 1 + (name == "down"), grid.ffn_size)):
            suffix = theirs if grid.kind == "mixtral" else f"{theirs}_proj"
            found[f"{room}.experts.{e}.{suffix}.weight"] = weight
    return found


def _attention(layer: dict[str, Tensor], spec: LayerSpec, shape: StockShape) -> dict[str, Tensor]:
    """Projections, biases and QK norms of one layer.

    With a = sqrt(D' / D): stock scores are q k / sqrt(D') where ours are q k / sqrt(D), so q must grow
    by a. Under QK norm the input of both norms grows by it, since (a x) / sqrt(|a x|^2 / D' + eps)
    = a (x / sqrt(|x|^2 / D + eps)), eps included: that is the a of q, and the gain of k takes its own back.
    """
    stock, widen = shape.spec, math.sqrt(shape.spec.head_dim / spec.head_dim)
    qk_norm = "attention.q_norm" in layer
    weights = {
        "o_proj.weight": _queries(_pad(layer["attention.o.weight"].movedim(0, -1), 2, stock.head_dim), spec, stock).T
    }
    for kind in ("weight", "bias"):
        if f"attention.q.{kind}" in layer:
            q, k, v = (layer[f"attention.{name}.{kind}"] for name in "qkv")
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
