"""Grouped-query attention whose every size is a leading slice.

Shapes: B batch, T sequence, H hidden, K kv heads, Q queries a group, D head_dim.
"""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from llmnas.nn.cache import KeyValues
from llmnas.nn.elastic_linear import ElasticLinear
from llmnas.nn.lowbit import Tokens, inputs, normed
from llmnas.nn.norm import rms_norm
from llmnas.nn.rope import rotate
from llmnas.nn.ternary import LOW_BIT
from llmnas.space.architecture import BaseModel, LayerKinds, LayerSpec

_HAS_FLASH = importlib.util.find_spec("flash_attn") is not None


class Attention(nn.Module):
    """Attention with the weights of the largest sizes; `forward` uses the leading ones.

    Rows and columns of the linear layers are grids of heads ([K, Q, D]), so that fewer KV heads, fewer queries a
    group and a smaller head_dim all stay leading slices and every query keeps its KV head.
    """

    def __init__(self, base: BaseModel, hidden_size: int, largest: LayerSpec, kinds: LayerKinds) -> None:
        super().__init__()
        kv, queries, dim = largest.kv_heads, largest.queries_per_group, largest.head_dim
        self.eps = base.norm_eps
        self.q = ElasticLinear(hidden_size, (kv, queries, dim), bias=base.qkv_bias, kinds=kinds.weights)
        self.k = ElasticLinear(hidden_size, (kv, dim), bias=base.qkv_bias, kinds=kinds.weights)
        self.v = ElasticLinear(hidden_size, (kv, dim), bias=base.qkv_bias, kinds=kinds.weights)
        self.o = ElasticLinear((kv, queries, dim), hidden_size, kinds=kinds.weights)
        each = base.qk_norm_over == "head"
        self.q_norm = nn.Parameter(torch.ones((dim,) if each else (kv, queries, dim))) if base.qk_norm else None
        self.k_norm = nn.Parameter(torch.ones((dim,) if each else (kv, dim))) if base.qk_norm else None
        low_bit = any(kind in kinds.weights for kind in LOW_BIT)
        self.inner_norm = nn.Parameter(torch.ones(kv, queries, dim)) if low_bit else None

    def forward(
        self,
        x: Tokens,
        spec: LayerSpec,
        rotation: Tensor | None,
        documents: Tensor | None,
        cache: KeyValues | None = None,
    ) -> Tensor:
        """Attend causally.

        Args:
            x: [B, T, H].
            spec: sizes to use, each at most the stored one.
            rotation: [T, 1, pairs], see `rope.rotations`; None for a layer without positions.
            documents: [B, S] document number of every token, those in the cache included, or None for one a row.
            cache: tokens read before, which `x` follows; the new ones are added to it.

        Returns:
            [B, T, H].
        """
        mixed = self.heads(x, spec, rotation, documents, cache)
        grid = (spec.kv_heads, spec.queries_per_group, spec.head_dim)
        return self.o(mixed, x.shape[-1], spec.weights, grid)

    def heads(
        self,
        x: Tokens,
        spec: LayerSpec,
        rotation: Tensor | None,
        documents: Tensor | None,
        cache: KeyValues | None = None,
    ) -> Tokens:
        """[B, T, H] -> what every query head read, as the output projection sees it, [B, T, K * Q * D]."""
        grid, kind = (spec.kv_heads, spec.queries_per_group, spec.head_dim), spec.weights
        seen, tokens, one = inputs(x, kind, self.q), x.shape[:-1], (spec.kv_heads, spec.head_dim)
        q = self.q(seen, grid, kind).view(*tokens, spec.q_heads, spec.head_dim)
        k, v = (linear(seen, one, kind).view(*tokens, *one) for linear in (self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = _normed_heads(q, self.q_norm, grid, self.eps), _normed_heads(k, self.k_norm, one, self.eps)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.append(k, v)
        mixed = attend(q, k, v, documents).flatten(2)
        if kind == "dense" or self.inner_norm is None:
            return mixed
        gain = self.inner_norm[tuple(slice(size) for size in grid)].flatten()
        return inputs(normed(mixed, gain, self.eps, kind), kind, self.o)


def _normed_heads(x: Tensor, gain: Tensor, sizes: tuple[int, ...], eps: float) -> Tensor:
    """RMSNorm of queries or keys [B, T, heads, D], over each head or, with a gain for every channel, over all."""
    if gain.dim() == 1:
        return rms_norm(x, gain, eps)
    return rms_norm(x.flatten(2), gain[tuple(slice(size) for size in sizes)].flatten(), eps).view_as(x)


def attend(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
    """Causal softmax(q k^T / sqrt(D)) v, within documents where they are given.

    FlashAttention on a GPU that has it (half precision), else torch's SDPA.

    Args:
        q: [B, T, K * Q, D], the last T of the positions that k and v hold.
        k, v: [B, S, K, D], S >= T.
        documents: [B, S], equal numbers standing together, or None.

    Returns:
        [B, T, K * Q, D].
    """
    mask = None
    seq, total = q.shape[1], k.shape[1]
    fits_flash = q.is_cuda and q.dtype in {torch.float16, torch.bfloat16} and (documents is None or seq == total)
    if _HAS_FLASH and fits_flash:
        return _flash(q, k, v, documents)
    if seq != total and seq > 1:  # SDPA's own causal mask would align the first positions, not the last
        mask = torch.ones(seq, total, dtype=torch.bool, device=q.device).tril(total - seq)
    if documents is not None:
        same = documents[:, None, -seq:, None] == documents[:, None, None, :]
        mask = same & torch.ones(seq, total, dtype=torch.bool, device=q.device).tril(total - seq)
    mixed = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        mask,
        is_causal=mask is None and seq == total,
        enable_gqa=True,
    )
    return mixed.transpose(1, 2)


def document_starts(documents: Tensor) -> Tensor:
    """Where documents begin in the batch laid out as one row, with its end: `[documents + 1]` int32.

    Every row of `documents` [B, T] begins a document of its own.
    """
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    starts = begins.flatten().nonzero().flatten()
    end = torch.tensor([documents.numel()], device=documents.device)
    return torch.cat([starts, end]).to(torch.int32)


def _flash(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
    from flash_attn import flash_attn_func, flash_attn_varlen_func  # an extra that needs a GPU

    if documents is None:
        mixed: Tensor = flash_attn_func(q, k, v, causal=True)
        return mixed
    starts = document_starts(documents)
    longest = int((starts[1:] - starts[:-1]).max())
    packed: Tensor = flash_attn_varlen_func(
        q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), starts, starts, longest, longest, causal=True
    )
    return packed.view_as(q)
