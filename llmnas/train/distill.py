"""Learning from the original: a frozen network that says, for every batch, what the trained one should put out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llmnas.nn.loss import most_likely
from llmnas.space import Architecture
from llmnas.supernet import Teacher, Transformer
from llmnas.train.settings import DistillSettings


class Signal(NamedTuple):
    """What one batch is to be learnt from.

    Attributes:
        teacher: a distribution over the same tokens, None for the text alone.
        blocks: by layer of the student, the residual stream after it, [batch, seq, hidden of the teacher].
    """

    teacher: Teacher | None = None
    blocks: Mapping[int, Tensor] = MappingProxyType({})


class Guide(Protocol):
    """Answers for tokens [batch, seq] and the network that is trained on them."""

    def __call__(self, tokens: Tensor, arch: Architecture, documents: Tensor | None) -> Signal:
        """The aims of this batch."""
        ...


class Original:
    """The network that training started from, frozen.

    After Minitron (Muralidharan et al. 2024, section 3) and Puzzle (Bercovich et al. 2024, section 3.1).

    A student that skips layers is compared where its next layer reads: the stream after kept layer i with the
    original's stream before the next kept one, so that what was skipped between them is learnt by layer i.

    Args:
        model: the whole network, channels in the order of the student's.
        settings: how many tokens of its distribution are kept, and whether block outputs are asked for.
        layers: which layer of `model` each layer of a stand-alone student is; None for students that list
            every layer, as sub-networks do.
    """

    def __init__(self, model: Transformer, settings: DistillSettings, layers: Sequence[int] | None = None) -> None:
        self.model = model.requires_grad_(False).eval()
        self.settings = settings
        self.layers = layers

    @torch.no_grad()
    def __call__(self, tokens: Tensor, arch: Architecture, documents: Tensor | None) -> Signal:
        """What the original says of these tokens."""
        if self.model.embedding.weight.device != tokens.device:
            self.model.to(tokens.device)
        outputs: dict[int, Tensor] | None = {} if self.settings.blocks else None
        hidden, _ = self.model.run(tokens, self.model.envelope, documents, outputs=outputs)
        teacher = None
        if self.settings.weight:
            logits = F.linear(hidden.flatten(0, 1), self.model.head_weight(self.model.envelope))
            teacher = most_likely(F.log_softmax(logits, dim=-1, dtype=torch.float32), self.settings.top_k)
        aims = self._aims([i for i, _ in arch.kept]) if outputs is not None else {}
        return Signal(teacher, {i: (outputs or {})[aim] for i, aim in aims.items()})

    def _aims(self, kept: Sequence[int]) -> dict[int, int]:
        """Layer of the student -> layer of the original whose output it aims at."""
        own = list(kept) if self.layers is None else [self.layers[i] for i in kept]
        before_next = [i - 1 for i in own[1:]] + [len(self.model.layers) - 1]
        return dict(zip(kept, before_next, strict=True))
