"""The transformer: supernet, sub-network and stand-alone model are this one class.

The active architecture is an argument of `forward`; the module holds no state about it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llmnas.nn.block import Block
from llmnas.nn.cache import Cache, layer_cache
from llmnas.nn.elastic_linear import ElasticEmbedding, ElasticLinear
from llmnas.nn.loss import BlockLoss, Losses, Teacher, block_distance, losses
from llmnas.nn.moe import Routing
from llmnas.nn.norm import stream_norm
from llmnas.nn.rope import layer_rotations
from llmnas.space.architecture import Architecture, Shape, require_fit
from llmnas.supernet.init import initialise
from llmnas.supernet.old_names import read_old_state


def document_numbers(tokens: Tensor, eos_id: int | None) -> Tensor | None:
    """[batch, seq] -> how many documents ended before each token of its row; None where nothing ends a document."""
    if eos_id is None:
        return None
    ends = tokens == eos_id
    return ends.cumsum(1) - ends.long()


class Transformer(nn.Module):
    """Decoder-only language model: RMSNorm, RoPE, GQA, SwiGLU (the Llama family).

    Args:
        space: a `SearchSpace` (the weights hold every architecture of it) or a
            `FixedShape` (one stand-alone network).
        seed: decides the initial weights, whatever the global generators hold; None leaves them unset.
    """

    def __init__(self, space: Shape, seed: int | None = 0) -> None:
        super().__init__()
        self.base = space.base
        self.envelope = space.envelope
        self.kinds = space.kinds
        vocab_size, hidden_size = self.base.vocab_size, self.envelope.hidden_size
        self.rope_dim = self.base.rope_dim or max(spec.head_dim for _, spec in self.envelope.kept)
        self.embedding = ElasticEmbedding(vocab_size, hidden_size)
        self.head = None if self.base.tied else ElasticLinear(hidden_size, vocab_size)
        self.layers = nn.ModuleList(
            Block(self.base, hidden_size, spec, kinds)
            for (_, spec), kinds in zip(self.envelope.kept, self.kinds, strict=True)
        )
        self.norm = nn.Parameter(torch.empty(hidden_size))
        self.register_load_state_dict_pre_hook(read_old_state)  # type: ignore[no-untyped-call]
        if seed is not None:
            initialise(self, self.envelope.depth, seed)

    def forward(
        self,
        tokens: Tensor,
        arch: Architecture | None = None,
        *,
        targets: Tensor | None = None,
        teacher: Teacher | None = None,
        teacher_weight: float | None = 0.5,
        emit_teacher: int = 0,
        block_aims: Mapping[int, Tensor] | None = None,
        block_weight: float = 0.0,
        block_loss: BlockLoss = "mse",
        balance_weight: float = 0.0,
        z_weight: float = 0.0,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        checkpoint_blocks: bool = False,
    ) -> Tensor | Losses:
        """Run one architecture.

        Args:
            tokens: [batch, seq] int64.
            arch: a sub-network, one entry a layer of this module; None for the largest.
            targets: [batch, seq] int64; the loss is computed here, since DeepSpeed wraps only `forward`.
            teacher: a distribution over the same positions to learn from, besides `targets`.
            teacher_weight: its share of the loss; None for one that falls where the teacher is worse, see `losses`.
            emit_teacher: entries of the own distribution to return with the losses.
            block_aims: by layer, what the residual stream after it should be, [batch, seq, at least hidden].
            block_weight: of the mean distance to them, added to the loss.
            block_loss: that distance, see `block_distance`.
            balance_weight: of the experts' balance loss, mean over layers with a router.
            z_weight: of the routers' z-loss (Zoph et al. 2022, eq. 5), likewise.
            documents: [batch, cached + seq] document numbers that no layer must cross, of all tokens read so far.
            cache: from `new_cache`; `tokens` follow what it holds and are added to it.
            checkpoint_blocks: keep only the input of every block for the backward pass.

        Returns:
            Logits [batch, seq, vocab] without targets, else `Losses`.
        """
        arch = arch or self.envelope
        outputs: dict[int, Tensor] | None = {} if block_aims else None
        hidden, routings = self.run(tokens, arch, documents, cache, checkpoint_blocks, outputs)
        head = self.head_weight(arch)
        if targets is None:
            return F.linear(hidden, head)
        found = losses(hidden, head, targets, teacher, teacher_weight, emit_teacher)
        if block_aims and outputs is not None:
            distances = [block_distance(outputs[i], aim, block_loss) for i, aim in block_aims.items()]
            found = found._replace(loss=found.loss + block_weight * torch.stack(distances).mean())
        if not routings:
            return found
        extra = [balance_weight * r.balance_loss() + z_weight * r.z for r in routings.values()]
        return found._replace(loss=found.loss + torch.stack(extra).mean(), routings=routings)

    def head_weight(self, arch: Architecture) -> Tensor:
        """[vocab, hidden] of the architecture: a view."""
        return (self.embedding if self.head is None else self.head).weight[:, : arch.hidden_size]

    def new_cache(self, arch: Architecture, batch: int, capacity: int) -> Cache:
        """An empty cache for `batch` sequences of at most `capacity` tokens."""
        return Cache([layer_cache(spec, self.embedding.weight, batch, capacity) for spec in arch.layers])

    def hidden_states(
        self, tokens: Tensor, arch: Architecture, documents: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """[batch, seq] int64 -> [batch, seq, hidden], after the final norm."""
        return self.run(tokens, arch, documents, cache)[0]

    def run(
        self,
        tokens: Tensor,
        arch: Architecture,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        checkpoint_blocks: bool = False,
        outputs: dict[int, Tensor] | None = None,
    ) -> tuple[Tensor, dict[int, Routing]]:
        """[batch, seq] int64 -> [batch, seq, hidden] after the final norm, and what the routers did, by layer.

        `tokens` may be their embeddings, [batch, seq, hidden], instead.
        `outputs`, where given, receives the residual stream after every kept layer, by layer.

        Raises:
            ValueError: the weights cannot serve the architecture.
        """
        require_fit(self, arch)
        x = tokens if tokens.is_floating_point() else self.embedding(tokens, arch.hidden_size)
        read = (cache.length if cache else 0) + tokens.shape[1]
        if documents is not None and documents.shape[1] != read:
            raise ValueError(f"documents are given for {documents.shape[1]} tokens, {read} were read")
        start, kept = cache.length if cache else 0, [i for i, _ in arch.kept]
        turns = layer_rotations(self.base, self.rope_dim, kept, tokens.shape[1], tokens.device, start)
        routings: dict[int, Routing] = {}
        for i, spec in arch.kept:
            block = self.layers[i]
            if checkpoint_blocks:
                x, routing = checkpoint(block, x, spec, turns[i], documents, use_reentrant=False)
            else:
                x, routing = block(x, spec, turns[i], documents, cache.layers[i] if cache else None)
            if outputs is not None:
                outputs[i] = x
            if routing is not None:
                routings[i] = routing
        if cache:
            cache.length += tokens.shape[1]
        return stream_norm(x, self.norm, self.base.norm_eps, self.base.norm), routings
