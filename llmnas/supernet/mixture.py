"""The continuous relaxation of a search space (DARTS, Liu et al. 2019, section 2.2): weights on choices, not a choice.

Every decision of the space with more than one choice has logits, called alpha; softmax(alpha) are its weights.
Decisions: `hidden_size`, `depth` (keep or skip, layer by layer; the depth itself where the policy is `even`), and every
dimension of a layer, one row for each layer or one for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from llmnas.errors import UserError
from llmnas.nn.block import Block
from llmnas.nn.loss import Losses, losses
from llmnas.nn.rope import layer_rotations
from llmnas.nn.soft import SoftLayer, leading_mask, soft_block, soft_rms_norm
from llmnas.space import DIMENSIONS, SearchSpace
from llmnas.space.space import even_subset
from llmnas.supernet.model import Transformer

Alphas = Mapping[str, Tensor]
_SPREAD = 1e-3  # standard deviation of the first alphas, as in the authors' code


@dataclass(frozen=True)
class SoftArchitecture:
    """A mixture of architectures: the mask of the residual stream, [H], and one mixture a layer."""

    hidden: Tensor
    layers: tuple[SoftLayer, ...]


def choices_of(space: SearchSpace, name: str) -> tuple[Any, ...]:
    """What a decision chooses from, in the order of its weights; False is a skip."""
    if name == "hidden_size":
        return space.hidden_size
    if name == "depth":
        return space.depth.choices if space.depth.policy == "even" else (False, True)
    return space.dimension(name).choices


def rows_of(space: SearchSpace, name: str) -> int:
    """How often a decision is made: once, or for every layer that may decide."""
    if name == "depth" and space.depth.policy != "even":
        return len(free_layers(space))
    return space.layers if name in space.layer_dimensions else 1


def free_layers(space: SearchSpace) -> tuple[int, ...]:
    """The layers that may be skipped by a decision of their own."""
    if space.depth.policy == "even" or space.depth.choices == (space.layers,):
        return ()
    return tuple(range(space.layers))[1:-1] if space.depth.policy == "keep_ends" else tuple(range(space.layers))


def decisions(space: SearchSpace) -> tuple[str, ...]:
    """Decisions with more than one choice."""
    names = ("hidden_size", "depth", *DIMENSIONS)
    return tuple(name for name in names if len(choices_of(space, name)) > 1 and rows_of(space, name))


def first_alphas(space: SearchSpace, seed: int) -> dict[str, Tensor]:
    """Logits close to zero, `[rows, choices]` float32 for every decision, with gradients switched on.

    Raises:
        UserError: the space has nothing to decide, or what cannot be mixed.
    """
    if max(space.experts.choices) > 1:
        raise UserError("darts: experts cannot be mixed (a router chooses, it does not weigh): set space.experts: 1")
    if "binary" in space.weights.choices:
        raise UserError("darts: binary weights cannot be mixed; allowed in space.weights: dense, ternary")
    if not decisions(space):
        raise UserError("darts: every decision of the space has one choice only; give at least one of them two")
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (_SPREAD * torch.randn(rows_of(space, name), len(choices_of(space, name)), generator=generator))
        .requires_grad_()
        for name in decisions(space)
    }  # fmt: skip


def weights_of(space: SearchSpace, alphas: Alphas) -> dict[str, Tensor]:
    """softmax(alpha), `[rows, choices]`, of every decision; 1 for those with one choice."""
    like = next(iter(alphas.values()))
    found = {}
    for name in ("hidden_size", "depth", *DIMENSIONS):
        choices, rows = choices_of(space, name), rows_of(space, name)
        found[name] = alphas[name].softmax(-1) if name in alphas else like.new_ones(rows, len(choices)) / len(choices)
    return found


def kept(space: SearchSpace, weights: Mapping[str, Tensor]) -> Tensor:
    """[layers]: how much every layer is there."""
    depth = weights["depth"]
    if space.depth.policy == "even":
        subsets = [even_subset(space.layers, d) for d in space.depth.choices]
        member = [[float(i in subset) for i in range(space.layers)] for subset in subsets]
        return depth[0] @ depth.new_tensor(member)
    free = free_layers(space)
    return torch.stack([depth[free.index(i), 1] if i in free else depth.new_ones(()) for i in range(space.layers)])


def soften(space: SearchSpace, alphas: Alphas, model: Transformer) -> SoftArchitecture:
    """The mixture that `alphas` describe, for the weights of `model`, whose sizes are at least the space's."""
    weights = weights_of(space, alphas)
    keep = kept(space, weights)

    def row(name: str, layer: int) -> Tensor:
        return weights[name][layer if name in space.layer_dimensions else 0]

    def mask(name: str, layer: int, most: int) -> Tensor:
        return leading_mask(row(name, layer), space.dimension(name).choices, most)

    layers = []
    for i, most in model.envelope.kept:
        dims = space.head_dim.choices
        head_dim = mask("head_dim", i, most.head_dim)
        groups, queries = mask("kv_heads", i, most.kv_heads), mask("queries_per_group", i, most.queries_per_group)
        scale = torch.tensor(dims, device=keep.device, dtype=keep.dtype).rsqrt()
        layers.append(
            SoftLayer(
                keep=keep[i],
                heads=groups[:, None, None] * queries[:, None] * head_dim,
                head_dim=head_dim,
                scores=leading_mask(row("head_dim", i) * scale, dims, most.head_dim),
                ffn=mask("ffn_size", i, most.ffn_size),
                mixers=dict(zip(space.mixer.choices, row("mixer", i), strict=True)),
                weights=dict(zip(space.weights.choices, row("weights", i), strict=True)),
            )
        )
    hidden = leading_mask(weights["hidden_size"][0], space.hidden_size, model.envelope.hidden_size)
    return SoftArchitecture(hidden, tuple(layers))


class Mixture(nn.Module):
    """A supernet that runs mixtures; has no weights besides the supernet's.

    Args:
        supernet: with the weights of every architecture of the space.
    """

    def __init__(self, supernet: Transformer) -> None:
        super().__init__()
        if not supernet.base.usual:
            raise UserError("darts: mixtures are of a Llama's blocks; leave norms and activation of space.base alone")
        self.supernet = supernet

    def forward(self, tokens: Tensor, soft: SoftArchitecture, *, targets: Tensor) -> Losses:
        """tokens, targets: [batch, seq] int64; see `soften` for the mixture."""
        net, base = self.supernet, self.supernet.base
        x = net.embedding(tokens)
        turns = layer_rotations(base, net.rope_dim, range(len(net.layers)), tokens.shape[1], tokens.device)
        for i, (block, layer) in enumerate(zip(net.layers, soft.layers, strict=True)):
            x = soft_block(cast(Block, block), x, layer, soft.hidden, turns[i])
        hidden = soft_rms_norm(x, net.norm, soft.hidden, base.norm_eps)
        return losses(hidden, net.head_weight(net.envelope), targets)
