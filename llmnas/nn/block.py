"""One transformer block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmnas.nn.attention import Attention
from llmnas.nn.cache import LayerCache
from llmnas.nn.ffn import FeedForward
from llmnas.nn.lowbit import Tokens, normed
from llmnas.nn.mlgru import MLGRU
from llmnas.nn.moe import Experts, Routing
from llmnas.nn.norm import rms_norm, stream_norm
from llmnas.space.architecture import BaseModel, LayerKinds, LayerSpec, Weights


class Block(nn.Module):
    """x + mixer(norm(x)), then x + feed_forward(norm(x)); holds the weights of every kind that it serves.

    With `base.norms` of `post` it is x + norm(mixer(x)) (OLMo 2, Walsh et al. 2025, section 2.1), with `both`
    x + norm'(mixer(norm(x))), and the feed-forward likewise. With `base.parallel` it is x + mixer(norm(x)) +
    feed_forward(norm(x)) with one norm.
    """

    def __init__(self, base: BaseModel, hidden_size: int, largest: LayerSpec, kinds: LayerKinds) -> None:
        super().__init__()
        self.eps, self.norms, self.norm, self.parallel = base.norm_eps, base.norms, base.norm, base.parallel
        mixes = any(mixer != "none" for mixer in kinds.mixers)
        self.mixer_norm = nn.Parameter(torch.ones(hidden_size)) if mixes and not base.parallel else None
        self.attention = Attention(base, hidden_size, largest, kinds) if "attention" in kinds.mixers else None
        self.mlgru = MLGRU(base, hidden_size, largest, kinds) if "mlgru" in kinds.mixers else None
        self.ffn_norm = nn.Parameter(torch.ones(hidden_size))
        both = base.norms == "both"
        self.mixer_out_norm = nn.Parameter(torch.ones(hidden_size)) if both and mixes else None
        self.ffn_out_norm = nn.Parameter(torch.ones(hidden_size)) if both else None
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
        if self.parallel and isinstance(self.ffn, FeedForward):
            seen = self._read(x, self.ffn_norm, spec.weights)
            if spec.mixer != "none":
                x = x + self._mix(seen, spec, rotation, documents, cache)
            return x + self.ffn(seen, spec), None
        if self.mixer_norm is not None and spec.mixer != "none":
            seen = self._read(x, self.mixer_norm, spec.weights)
            # no name for the update: it would live on through the feed-forward
            x = x + self._written(
                self._mix(seen, spec, rotation, documents, cache), self.mixer_norm, self.mixer_out_norm
            )
            del seen
        if isinstance(self.ffn, Experts):
            update, routing = self.ffn(x if self.norms == "post" else rms_norm(x, self.ffn_norm, self.eps), spec)
            return x + self._written(update, self.ffn_norm, self.ffn_out_norm), routing
        update = self.ffn(self._read(x, self.ffn_norm, spec.weights), spec)
        return x + self._written(update, self.ffn_norm, self.ffn_out_norm), None

    def _read(self, x: Tensor, gain: Tensor, kind: Weights) -> Tokens:
        """What a mixer or feed-forward reads of the residual stream."""
        if self.norms == "post":
            return x
        return normed(x, gain, self.eps, kind) if self.norm == "rms" else stream_norm(x, gain, self.eps, self.norm)

    def _written(self, update: Tensor, gain: Tensor, out_gain: Tensor | None) -> Tensor:
        """What of its output is added to the residual stream."""
        if self.norms == "post":
            return rms_norm(update, gain, self.eps)
        return update if out_gain is None else rms_norm(update, out_gain, self.eps)

    def _mix(
        self, x: Tokens, spec: LayerSpec, rotation: Tensor | None, documents: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        mixed: Tensor
        if spec.mixer == "mlgru" and self.mlgru is not None:
            mixed = self.mlgru(x, spec, documents, cache=cache)
        elif self.attention is not None:
            mixed = self.attention(x, spec, rotation, documents, cache)
        return mixed
