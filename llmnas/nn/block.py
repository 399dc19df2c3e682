"""One pre-norm transformer block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmnas.nn.attention import Attention
from llmnas.nn.cache import LayerCache
from llmnas.nn.ffn import FeedForward
from llmnas.nn.lowbit import Tokens, normed
from llmnas.nn.mlgru import MLGRU
from llmnas.nn.moe import Experts, Routing
from llmnas.nn.norm import rms_norm
from llmnas.space.architecture import BaseModel, LayerKinds, LayerSpec


class Block(nn.Module):
    """x + mixer(norm(x)), then x + feed_forward(norm(x)); holds the weights of every kind that it serves."""

    def __init__(self, base: BaseModel, hidden_size: int, largest: LayerSpec, kinds: LayerKinds) -> None:
        super().__init__()
        self.eps = base.norm_eps
        mixes = any(mixer != "none" for mixer in kinds.mixers)
        self.mixer_norm = nn.Parameter(torch.ones(hidden_size)) if mixes else None
        self.attention = Attention(base, hidden_size, largest, kinds) if "attention" in kinds.mixers else None
        self.mlgru = MLGRU(base, hidden_size, largest, kinds) if "mlgru" in kinds.mixers else None
        self.ffn_norm = nn.Parameter(torch.ones(hidden_size))
        self.ffn: Experts | FeedForward = (
            Experts(base, hidden_size, largest, kinds)
            if largest.experts > 1
            else FeedForward(base, hidden_size, largest.ffn_size, kinds)
        )

    def forward(
        self,
        x: Tensor,
        spec: LayerSpec,
        rotation: Tensor | None,
        documents: Tensor | None,
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, Routing | None]:
        """x: [batch, seq, hidden] -> the same shape, and what a router did; see `Attention.forward` for the rest."""
        if self.mixer_norm is not None and spec.mixer != "none":
            x = x + self._mix(normed(x, self.mixer_norm, self.eps, spec.weights), spec, rotation, documents, cache)
        if isinstance(self.ffn, Experts):
            update, routing = self.ffn(rms_norm(x, self.ffn_norm, self.eps), spec)
            return x + update, routing
        return x + self.ffn(normed(x, self.ffn_norm, self.eps, spec.weights), spec), None

    def _mix(
        self, x: Tokens, spec: LayerSpec, rotation: Tensor | None, documents: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        mixed: Tensor
        if spec.mixer == "mlgru" and self.mlgru is not None:
            mixed = self.mlgru(x, spec, documents, cache=cache)
        elif self.attention is not None:
            mixed = self.attention(x, spec, rotation, documents, cache)
        return mixed
