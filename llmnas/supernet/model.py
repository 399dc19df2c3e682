"""The transformer: supernet, sub-network and stand-alone model are this one class.

The active architecture is an argument of `forward`; the module holds no state about it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from llmnas.nn.block import Block
from llmnas.nn.loss import Losses, Teacher, losses
from llmnas.nn.norm import rms_norm
from llmnas.nn.rope import frequencies, rotations
from llmnas.space.architecture import Architecture, Shape, require_fit
from llmnas.supernet.init import initialise


class Transformer(nn.Module):
    """Decoder-only language model: RMSNorm, RoPE, GQA, SwiGLU (the Llama family).

    Args:
        space: a `SearchSpace` (the weights hold every architecture of it) or a
            `FixedShape` (one stand-alone network).
        seed: decides the initial weights, whatever the global generators hold.
    """

    def __init__(self, space: Shape, seed: int = 0) -> None:
        super().__init__()
        self.base = space.base
        self.envelope = space.envelope
        self.kinds = space.kinds
        vocab_size, hidden_size = self.base.vocab_size, self.envelope.hidden_size
        self.rope_dim = self.base.rope_dim or max(spec.head_dim for _, spec in self.envelope.kept)
        self.embedding = nn.Parameter(torch.empty(vocab_size, hidden_size))
        self.layers = nn.ModuleList(Block(self.base, hidden_size, spec) for _, spec in self.envelope.kept)
        self.norm = nn.Parameter(torch.empty(hidden_size))
        self.head = None if self.base.tied else nn.Parameter(torch.empty(vocab_size, hidden_size))
        initialise(self, self.envelope.depth, seed)

    def forward(
        self,
        tokens: Tensor,
        arch: Architecture | None = None,
        *,
        targets: Tensor | None = None,
        teacher: Teacher | None = None,
        teacher_weight: float = 0.5,
        emit_teacher: int = 0,
        documents: Tensor | None = None,
    ) -> Tensor | Losses:
        """Run one architecture.

        Args:
            tokens: [batch, seq] int64.
            arch: a sub-network, one entry a layer of this module; None for the largest.
            targets: [batch, seq] int64; the loss is computed here, since DeepSpeed wraps only `forward`.
            teacher: a distribution over the same positions to learn from, besides `targets`.
            teacher_weight: its share of the loss.
            emit_teacher: entries of the own distribution to return with the losses.
            documents: [batch, seq] document numbers that attention must not cross.

        Returns:
            Logits [batch, seq, vocab] without targets, else `Losses`.
        """
        arch = arch or self.envelope
        hidden = self.hidden_states(tokens, arch, documents)
        head = self.head_weight(arch)
        if targets is None:
            return F.linear(hidden, head)
        return losses(hidden, head, targets, teacher, teacher_weight, emit_teacher)

    def head_weight(self, arch: Architecture) -> Tensor:
        """[vocab, hidden] of the architecture: a view."""
        return (self.embedding if self.head is None else self.head)[:, : arch.hidden_size]

    def hidden_states(self, tokens: Tensor, arch: Architecture, documents: Tensor | None = None) -> Tensor:
        """[batch, seq] int64 -> [batch, seq, hidden], after the final norm.

        Raises:
            ValueError: the weights cannot serve the architecture.
        """
        require_fit(self, arch)
        x = F.embedding(tokens, self.embedding[:, : arch.hidden_size])
        freqs = frequencies(self.rope_dim, self.base.rope_theta, self.base.rope_order)
        rotation = rotations(freqs, tokens.shape[1], tokens.device)
        for layer, spec in zip(self.layers, arch.layers, strict=True):
            if spec is not None:
                x = layer(x, spec, rotation, documents)
        return rms_norm(x, self.norm, self.base.norm_eps)
