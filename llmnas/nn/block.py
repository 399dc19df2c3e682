"""One pre-norm transformer block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmnas.nn.attention import Attention
from llmnas.nn.cache import LayerCache
from llmnas.nn.ffn import FeedForward
from llmnas.nn.norm import rms_norm
from llmnas.space.architecture import BaseModel, LayerSpec


class Block(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, base: BaseModel, hidden_size: int, largest: LayerSpec) -> None:
        super().__init__()
        self.eps = base.norm_eps
        self.attention_norm = nn.Parameter(torch.ones(hidden_size))
        self.attention = Attention(base, hidden_size, largest)
        self.ffn_norm = nn.Parameter(torch.ones(hidden_size))
        self.ffn = FeedForward(hidden_size, largest.ffn_size)

    def forward(
        self, x: Tensor, spec: LayerSpec, rotation: Tensor, documents: Tensor | None, cache: LayerCache | None = None
    ) -> Tensor:
        """x: [batch, seq, hidden] -> the same shape; see `Attention.forward` for the rest."""
        x = x + self.attention(rms_norm(x, self.attention_norm, self.eps), spec, rotation, documents, cache)
        mixed: Tensor = x + self.ffn(rms_norm(x, self.ffn_norm, self.eps), spec.ffn_size)
        return mixed
