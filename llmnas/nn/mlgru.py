"""MLGRU token mixer (Zhu et al. 2024, "Scalable MatMul-free Language Modeling", section 3.3.1).

    f_t = lb + (1 - lb) sigmoid(x_t W_f)      c_t = silu(x_t W_c)      g_t = sigmoid(x_t W_g)
    h_t = f_t h_(t-1) + (1 - f_t) c_t         y_t = (g_t h_t) W_o

The recurrence is element-wise; lb, a learned lower bound of the forget gate, is HGRN's (Qin et al. 2023, section
3.2). Weights are stored on attention's grid of heads, so the same choices slice both.
Letters: B batch, T sequence, H hidden, K kv heads, Q queries a group, D head_dim, W = K Q D.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from llmnas.nn.cache import State
from llmnas.nn.elastic_linear import ElasticLinear
from llmnas.nn.kernels import mlgru_scan as scan
from llmnas.nn.lowbit import Tokens, inputs, normed
from llmnas.nn.ternary import LOW_BIT
from llmnas.space.architecture import BaseModel, LayerKinds, LayerSpec


class MLGRU(nn.Module):
    """Gated linear recurrence with the weights of the largest sizes; `forward` uses the leading ones."""

    def __init__(self, base: BaseModel, hidden_size: int, largest: LayerSpec, kinds: LayerKinds) -> None:
        super().__init__()
        grid = (largest.kv_heads, largest.queries_per_group, largest.head_dim)
        self.eps = base.norm_eps
        self.forget = ElasticLinear(hidden_size, grid, kinds=kinds.weights)
        self.candidate = ElasticLinear(hidden_size, grid, kinds=kinds.weights)
        self.output_gate = ElasticLinear(hidden_size, grid, kinds=kinds.weights)
        self.o = ElasticLinear(grid, hidden_size, kinds=kinds.weights)
        self.lower = nn.Parameter(torch.zeros(*grid))  # logits of the lower bound
        low_bit = any(kind in kinds.weights for kind in LOW_BIT)
        self.inner_norm = nn.Parameter(torch.ones(*grid)) if low_bit else None

    def forward(self, x: Tokens, spec: LayerSpec, documents: Tensor | None, cache: State | None = None) -> Tensor:
        """Mix tokens causally.

        Args:
            x: [B, T, H].
            spec: sizes to use, each at most the stored one.
            documents: [B, S] document number of every token, those read before included, or None for one a row.
            cache: holds the state that the tokens before these left, and takes the new one.

        Returns:
            [B, T, H].
        """
        seen = self.inputs(x, spec)
        forget, kept = self.gates(seen, spec)
        before = None if cache is None else cache.state
        hidden = scan(forget, kept, before, None if documents is None else starts_of(documents)[:, -x.shape[1] :])
        if cache is not None:
            cache.state = hidden[:, -1]
        return self.project(hidden, seen, spec)

    def inputs(self, x: Tokens, spec: LayerSpec) -> Tokens:
        """[B, T, H] as the three projections that read it see it."""
        return inputs(x, spec.weights, self.forget)

    def gates(self, seen: Tokens, spec: LayerSpec) -> tuple[Tensor, Tensor]:
        """`inputs` [B, T, H] -> forget gates f and inputs (1 - f) c, `[B, T, W]` each."""
        grid, kind = (spec.kv_heads, spec.queries_per_group, spec.head_dim), spec.weights
        lower = self.lower[tuple(slice(size) for size in grid)].flatten().sigmoid()
        forget = lower + (1 - lower) * self.forget(seen, grid, kind).sigmoid()
        return forget, (1 - forget) * F.silu(self.candidate(seen, grid, kind))

    def project(self, hidden: Tensor, seen: Tokens, spec: LayerSpec) -> Tensor:
        """States [B, T, W] -> [B, T, H], through the output gate, which sees `inputs` [B, T, H]."""
        grid = (spec.kv_heads, spec.queries_per_group, spec.head_dim)
        return self.o(self.gated(hidden, seen, spec), seen.shape[-1], spec.weights, grid)

    def gated(self, hidden: Tensor, seen: Tokens, spec: LayerSpec) -> Tokens:
        """States [B, T, W] through the output gate, as the output projection sees them."""
        grid = (spec.kv_heads, spec.queries_per_group, spec.head_dim)
        mixed = self.output_gate(seen, grid, spec.weights).sigmoid() * hidden
        if spec.weights == "dense" or self.inner_norm is None:
            return mixed
        gain = self.inner_norm[tuple(slice(size) for size in grid)].flatten()
        return inputs(normed(mixed, gain, self.eps, spec.weights), spec.weights, self.o)


def starts_of(documents: Tensor) -> Tensor:
    """[B, T] document numbers -> [B, T] bool: tokens before which another document ended."""
    starts = torch.zeros_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return starts
