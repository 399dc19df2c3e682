"""Blocks whose sizes and kinds are mixed: one pass with a soft mask over the leading slices.

Sizes are nested, so a weighted mixture over them is the largest layer with channel c scaled by the total weight of the
sizes that contain it (entangled mixtures: Sukthanker et al. 2024, "Weight-Entanglement Meets Gradient-Based Neural
Architecture Search", section 3). Kinds (mixer, weights) share no computation: each runs once. With all the weight on
one choice everywhere, every function here equals the layer of that choice.

Letters: B batch, T sequence, H hidden, K kv heads, Q queries a group, D head_dim, F ffn_size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llmnas.nn.attention import Attention, attend
from llmnas.nn.block import Block
from llmnas.nn.ffn import FeedForward
from llmnas.nn.kernels import mlgru_scan as scan
from llmnas.nn.mlgru import MLGRU
from llmnas.nn.rope import rotate
from llmnas.nn.ternary import read_input
from llmnas.space.architecture import LayerSpec, Mixer, Weights


@dataclass(frozen=True)
class SoftLayer:
    """How much of every choice one layer is. All tensors are differentiable in the choices' weights.

    Attributes:
        keep: scalar, how much the layer is there (1) or skipped (0).
        heads: [K, Q, D] mask of the grid of heads.
        head_dim: [D] mask of a head's channels.
        scores: [D] factor of each channel in the attention scores: the sum of weight / sqrt(d) over the head
            dims d that contain it, which makes the scores exactly the mixture of every head dim's scores.
        ffn: [F] mask.
        mixers, weights: scalar weight of every kind on offer.
    """

    keep: Tensor
    heads: Tensor
    head_dim: Tensor
    scores: Tensor
    ffn: Tensor
    mixers: Mapping[Mixer, Tensor]
    weights: Mapping[Weights, Tensor]


def leading_mask(weights: Tensor, choices: tuple[int, ...], size: int) -> Tensor:
    """[choices] weights -> [size]: the total weight of the choices that contain each channel."""
    channels = torch.arange(size, device=weights.device)
    inside = channels < torch.tensor(choices, device=weights.device)[:, None]
    return weights @ inside.to(weights.dtype)


def soft_rms_norm(x: Tensor, gain: Tensor, mask: Tensor, eps: float) -> Tensor:
    """RMSNorm over the mask's expected width: m x gain / sqrt(sum(m x^2) / sum(m) + eps).

    Args:
        x: [..., width].
        gain, mask: [width].
        eps: added to the mean square.
    """
    mean_square = (x.square() * mask).sum(-1, keepdim=True) / mask.sum()
    return x * (mask * gain) * torch.rsqrt(mean_square + eps)


def soft_block(block: Block, x: Tensor, layer: SoftLayer, hidden: Tensor, rotation: Tensor | None) -> Tensor:
    """x + keep (block(x) - x), where block mixes over its choices.

    Args:
        block: with the weights of the largest sizes; its feed-forward is dense.
        x: [B, T, H].
        layer: the mixture.
        hidden: [H] mask of the residual stream, applied where it is read (what is written beyond a
            width is never read by it, so it needs no mask there).
        rotation: [T, 1, pairs], see `rope.rotations`.
    """
    feed_forward = block.ffn
    if not isinstance(feed_forward, FeedForward):
        raise TypeError("mixtures run dense feed-forwards only")
    update = torch.zeros_like(x)
    if block.mixer_norm is not None:
        seen = soft_rms_norm(x, block.mixer_norm, hidden, block.eps)
        for kind, share in layer.weights.items():
            for mixer, weight in layer.mixers.items():
                if mixer == "attention" and block.attention is not None:
                    update = update + share * weight * soft_attention(block.attention, seen, layer, kind, rotation)
                elif mixer == "mlgru" and block.mlgru is not None:
                    update = update + share * weight * soft_mlgru(block.mlgru, seen, layer, kind)
    seen = soft_rms_norm(x + update, block.ffn_norm, hidden, block.eps)
    for kind, share in layer.weights.items():
        update = update + share * soft_feed_forward(feed_forward, seen, layer, kind)
    return x + layer.keep * update


def soft_attention(module: Attention, x: Tensor, layer: SoftLayer, kind: Weights, rotation: Tensor | None) -> Tensor:
    """Grouped-query attention over mixed heads; x: [B, T, H], masked -> [B, T, H]."""
    kv, queries, dim = module.q.rows
    seen, tokens = read_input(x, kind), x.shape[:-1]
    q = module.q(seen, module.q.rows, kind).view(*tokens, kv * queries, dim)
    k, v = (linear(seen, (kv, dim), kind).view(*tokens, kv, dim) for linear in (module.k, module.v))
    if module.q_norm is not None and module.k_norm is not None:
        q = soft_rms_norm(q, module.q_norm, layer.head_dim, module.eps)
        k = soft_rms_norm(k, module.k_norm, layer.head_dim, module.eps)
    # `attend` divides by sqrt(D) of the largest head
    if rotation is not None:
        q, k = rotate(q, rotation), rotate(k, rotation)
    mixed = attend(q * (layer.scores * dim**0.5), k, v, None)
    return _out(module, mixed.flatten(2), x.shape[-1], layer, kind)


def soft_mlgru(module: MLGRU, x: Tensor, layer: SoftLayer, kind: Weights) -> Tensor:
    """The linear recurrence over mixed heads; x: [B, T, H], masked -> [B, T, H]."""
    kv, queries, dim = module.forget.rows
    spec = LayerSpec(kv, queries, dim, 1, weights=kind, mixer="mlgru")
    hidden = scan(*module.gates(module.inputs(x, spec), spec))
    gate = module.output_gate(read_input(x, kind), module.forget.rows, kind)
    return _out(module, gate.sigmoid() * hidden, x.shape[-1], layer, kind)


def _out(module: Attention | MLGRU, mixed: Tensor, width: int, layer: SoftLayer, kind: Weights) -> Tensor:
    """Project what the heads found, [B, T, K Q D], to the residual stream."""
    mask = layer.heads.flatten()
    if kind == "dense" or module.inner_norm is None:
        seen = mixed * mask
    else:
        seen = read_input(soft_rms_norm(mixed, module.inner_norm.flatten(), mask, module.eps), kind)
    return module.o(seen, width, kind, tuple(layer.heads.shape))


def soft_feed_forward(module: FeedForward, x: Tensor, layer: SoftLayer, kind: Weights) -> Tensor:
    """SwiGLU of mixed width; x: [B, T, H], masked -> [B, T, H]."""
    seen, size = read_input(x, kind), len(module.gate.weight)
    gated = F.silu(module.gate(seen, size, kind)) * module.up(seen, size, kind)
    if kind == "dense" or module.inner_norm is None:
        gated = gated * layer.ffn
    else:
        gated = read_input(soft_rms_norm(gated, module.inner_norm, layer.ffn, module.eps), kind, signed=False)
    return module.down(gated, x.shape[-1], kind)
