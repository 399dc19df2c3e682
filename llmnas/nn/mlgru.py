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
from llmnas.nn.kernels import mlgru_scan as scan
from llmnas.nn.linear import linear_from_heads, linear_heads
from llmnas.nn.norm import rms_norm
from llmnas.nn.ternary import LOW_BIT, add_scales, read_input, reader
from llmnas.space.architecture import BaseModel, LayerKinds, LayerSpec

OUT_DIMS = {"forget": 3, "candidate": 3, "output_gate": 3, "o": 1}


class MLGRU(nn.Module):
    """Gated linear recurrence with the weights of the largest sizes; `forward` uses the leading ones."""

    def __init__(self, base: BaseModel, hidden_size: int, largest: LayerSpec, kinds: LayerKinds) -> None:
        super().__init__()
        grid = (largest.kv_heads, largest.queries_per_group, largest.head_dim)
        self.eps = base.norm_eps
        self.forget = nn.Parameter(torch.empty(*grid, hidden_size))
        self.candidate = nn.Parameter(torch.empty(*grid, hidden_size))
        self.output_gate = nn.Parameter(torch.empty(*grid, hidden_size))
        self.o = nn.Parameter(torch.empty(hidden_size, *grid))
        self.lower = nn.Parameter(torch.zeros(*grid))  # logits of the lower bound
        low_bit = any(kind in kinds.weights for kind in LOW_BIT)
        self.inner_norm = nn.Parameter(torch.ones(*grid)) if low_bit else None
        add_scales(self, kinds, OUT_DIMS)

    def forward(
        self, x: Tensor, spec: LayerSpec, documents: Tensor | None, state: Tensor | None = None,
        cache: State | None = None,
    ) -> Tensor:  # fmt: skip
        """Mix tokens causally.

        Args:
            x: [B, T, H].
            spec: sizes to use, each at most the stored one.
            documents: [B, S] document number of every token, those read before included, or None for one a row.
            state: [B, W] what the tokens before these left, or None.
            cache: holds that state instead, and takes the new one.

        Returns:
            [B, T, H].
        """
        forget, kept = self.gates(x, spec)
        before = state if cache is None else cache.state
        hidden = scan(forget, kept, before, None if documents is None else starts_of(documents)[:, -x.shape[1] :])
        if cache is not None:
            cache.state = hidden[:, -1]
        return self.project(hidden, x, spec)

    def gates(self, x: Tensor, spec: LayerSpec) -> tuple[Tensor, Tensor]:
        """[B, T, H] -> forget gates f and inputs (1 - f) c, `[B, T, W]` each."""
        sizes, kind = (spec.kv_heads, spec.queries_per_group, spec.head_dim), spec.weights
        seen = read_input(x, kind)
        lower = self.lower[tuple(slice(size) for size in sizes)].flatten().sigmoid()
        gate = linear_heads(seen, self.forget, sizes, read=reader(self, "forget", kind, 3)).sigmoid()
        candidate = F.silu(linear_heads(seen, self.candidate, sizes, read=reader(self, "candidate", kind, 3)))
        forget = lower + (1 - lower) * gate
        return forget, (1 - forget) * candidate

    def project(self, hidden: Tensor, x: Tensor, spec: LayerSpec) -> Tensor:
        """States [B, T, W] -> [B, T, H], through the output gate, which sees x [B, T, H]."""
        grid = (spec.kv_heads, spec.queries_per_group, spec.head_dim)
        read = reader(self, "o", spec.weights, 1)
        return linear_from_heads(self.gated(hidden, x, spec), self.o, grid, x.shape[-1], read=read)

    def gated(self, hidden: Tensor, x: Tensor, spec: LayerSpec) -> Tensor:
        """States [B, T, W] through the output gate, as the output projection sees them."""
        sizes, kind = (spec.kv_heads, spec.queries_per_group, spec.head_dim), spec.weights
        gate = linear_heads(read_input(x, kind), self.output_gate, sizes, read=reader(self, "output_gate", kind, 3))
        mixed = gate.sigmoid() * hidden
        if kind == "dense" or self.inner_norm is None:
            return mixed
        gain = self.inner_norm[tuple(slice(size) for size in sizes)].flatten()
        return read_input(rms_norm(mixed, gain, self.eps), kind)


def starts_of(documents: Tensor) -> Tensor:
    """[B, T] document numbers -> [B, T] bool: tokens before which another document ended."""
    starts = torch.zeros_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return starts
