"""Mixture of SwiGLU experts (Shazeer et al. 2017) whose number, choice and size are leading slices.

Dropless: tokens are sorted by expert and multiplied by `grouped_mm`, so the cost is that of the experts
a token uses. Letters: N tokens, H hidden, E experts, K experts a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from llmnas.nn.elastic_linear import ElasticLinear
from llmnas.nn.expert_linear import ExpertLinear
from llmnas.nn.ffn import FeedForward
from llmnas.nn.lowbit import Tokens, inputs, swiglu_inputs
from llmnas.nn.ternary import LOW_BIT
from llmnas.space.architecture import BaseModel, LayerKinds, LayerSpec


class Routing(NamedTuple):
    """What a router did with the tokens of one forward.

    Attributes:
        load: [E] share of the N K assignments that each expert got, detached.
        importance: [E] mean score of each expert (Switch Transformer's P), carries gradients.
        z: scalar, mean squared log-sum-exp of the logits, carries gradients.
        entropy: scalar, mean entropy of a token's normalised scores in nats, detached.
    """

    load: Tensor
    importance: Tensor
    z: Tensor
    entropy: Tensor

    def balance_loss(self) -> Tensor:
        """E sum_e load_e importance_e: 1 where both are even (Fedus et al. 2022, eq. 4)."""
        return self.load.numel() * (self.load * self.importance).sum()


class Exchange(Protocol):
    """Runs experts that other processes hold: (rows [N, H] sorted by expert, counts [E], run) -> [N, H].

    `run` does the same for the experts that this process holds, the leading ones of its weights.
    """

    def __call__(self, rows: Tensor, counts: Tensor, run: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Collective among the processes that hold the experts."""
        ...


class Experts(nn.Module):
    """The experts of one layer; expert 0 alone is its dense feed-forward.

    `exchange` is there while the experts are divided among processes (`llmnas/train/expert_parallel.py`).
    """

    balance: Tensor

    def __init__(self, base: BaseModel, hidden_size: int, largest: LayerSpec, kinds: LayerKinds) -> None:
        super().__init__()
        experts, ffn_size = largest.experts, largest.ffn_size
        self.eps, self.score, self.renormalise = base.norm_eps, base.router, base.norm_top_k
        self.gate = ExpertLinear(experts, hidden_size, ffn_size, kinds=kinds.weights)
        self.up = ExpertLinear(experts, hidden_size, ffn_size, kinds=kinds.weights)
        self.down = ExpertLinear(experts, ffn_size, hidden_size, kinds=kinds.weights)
        self.router = ElasticLinear(hidden_size, experts)
        # added to the scores where experts are chosen, never where they are weighted; trained outside of the gradient
        self.register_buffer("balance", torch.zeros(experts))
        low_bit = any(kind in kinds.weights for kind in LOW_BIT)
        self.inner_norm = nn.Parameter(torch.ones(ffn_size)) if low_bit else None
        self.exchange: Exchange | None = None
        self.shared = FeedForward(base, hidden_size, largest.shared_size, kinds) if largest.shared_experts else None
        gated = base.shared_gate and self.shared is not None
        self.shared_gate = nn.Parameter(torch.empty(hidden_size)) if gated else None

    def forward(self, x: Tensor, spec: LayerSpec) -> tuple[Tensor, Routing | None]:
        """x: [..., H] -> the same shape, and what the router did (None for a dense layer)."""
        tokens = x.flatten(0, -2)
        if spec.experts == 1:
            everyone = torch.tensor([len(tokens)], device=x.device)
            alone = self.one(tokens, spec) if self.exchange is None else self._run(tokens, everyone, spec)
            return alone.view_as(x), None
        chosen, weight, routing = self.route(tokens, spec)
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=spec.experts)
        source = order // spec.top_k
        out = self._run(tokens[source], counts, spec) * weight.flatten()[order, None].to(x.dtype)
        return self._with_all(tokens, spec).index_add(0, source, out).view_as(x), routing

    def _run(self, rows: Tensor, counts: Tensor, spec: LayerSpec) -> Tensor:
        """Rows [N, H] sorted by expert, `counts` [E] of them each -> what their experts make of them."""

        def held(rows: Tensor, counts: Tensor) -> Tensor:
            return self._grouped(rows, spec, counts.cumsum(0).to(torch.int32))

        return held(rows, counts) if self.exchange is None else self.exchange(rows, counts, held)

    def _with_all(self, tokens: Tensor, spec: LayerSpec) -> Tensor:
        """[N, H] -> what the shared experts say of every token; zeros where there are none."""
        if self.shared is None or not spec.shared_experts:
            return torch.zeros_like(tokens)
        out: Tensor = self.shared(tokens, replace(spec, ffn_size=spec.shared_size))
        return (
            out
            if self.shared_gate is None
            else out * (tokens @ self.shared_gate[: tokens.shape[-1]]).sigmoid()[:, None]
        )

    def route(self, tokens: Tensor, spec: LayerSpec) -> tuple[Tensor, Tensor, Routing]:
        """Choose experts for `tokens` [N, H].

        Returns:
            Experts [N, K] int64, their weights [N, K] float32, and the statistics.
        """
        logits, scores = self.scores(tokens, spec)
        chosen = (scores.detach() + self.balance[: spec.experts]).topk(spec.top_k, sorted=False).indices
        weight = scores.gather(-1, chosen)
        if self.renormalise:
            weight = weight / weight.sum(-1, keepdim=True)
        shares = scores / scores.sum(-1, keepdim=True)
        load = chosen.flatten().bincount(minlength=spec.experts) / chosen.numel()
        entropy = -torch.xlogy(shares, shares).sum(-1).mean().detach()
        return chosen, weight, Routing(load, shares.mean(0), logits.logsumexp(-1).square().mean(), entropy)

    def scores(self, tokens: Tensor, spec: LayerSpec) -> tuple[Tensor, Tensor]:
        """[N, H] -> the router's logits and what it makes of them, both [N, E] float32."""
        logits = self.router(tokens, spec.experts).float()
        return logits, logits.softmax(-1) if self.score == "softmax" else logits.sigmoid()

    def one(self, tokens: Tensor, spec: LayerSpec, expert: int = 0) -> Tensor:
        """[N, H] -> what one expert alone makes of every token; `spec.experts` is not looked at."""
        ends = torch.tensor([len(tokens)], dtype=torch.int32, device=tokens.device)
        return self._grouped(tokens, spec, ends, expert)

    def gated(self, tokens: Tensor, spec: LayerSpec, ends: Tensor, first: int = 0) -> Tokens:
        """[N, H] sorted by expert -> the channels of their experts as `down` sees them, [N, F].

        Args:
            ends: where the rows of each expert end; as many experts are used, `spec.experts` is not looked at.
            first: the first of them.
        """
        kind, seen = spec.weights, inputs(tokens, spec.weights, self.gate)
        gate, up = (linear(seen, spec.ffn_size, ends, kind, first) for linear in (self.gate, self.up))
        if kind == "dense" or self.inner_norm is None:
            return F.silu(gate) * up
        return swiglu_inputs(gate, up, self.inner_norm, self.eps, kind, self.down)

    def _grouped(self, rows: Tensor, spec: LayerSpec, ends: Tensor, first: int = 0) -> Tensor:
        """rows: [N K, H] sorted by expert, those of expert `first` + e end at ends[e] -> [N K, H]."""
        seen = self.gated(rows, spec, ends, first)
        return self.down(seen, rows.shape[-1], ends, spec.weights, first)
