"""Cutting a pretrained model down to a size by recipe: what a found architecture has to beat.

`found_cut` is no recipe for a shape: it is the found one, cut out of the model as the others are, so that these start
equal.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import FiniteFloat

from llmnas.cost import Budget, count_params
from llmnas.errors import UserError
from llmnas.files import read_as, write_json
from llmnas.pipeline.context import Context
from llmnas.space import Architecture, LayerSpec, SearchSpace, Shape, even_subset
from llmnas.supernet import Transformer, load_weights
from llmnas.supernet.importance import layer_importance

Recipe = Literal["last_layers", "depth", "width"]


def pruned(recipe: Recipe, space: Shape, params: int, scores: Sequence[float]) -> Architecture:
    """The largest network of a recipe with at most `params` parameters, listed layer by layer of the supernet.

    - `last_layers`: the last layers are dropped;
    - `depth`: the least important ones are (Minitron's depth pruning, Muralidharan et al. 2024, section 2.3);
    - `width`: hidden size and FFN of every layer shrink by one factor, heads stay (its width pruning, section 2.4).

    Whole layers are coarse steps: what is left of the count goes into nothing, and the table says the count.

    Args:
        scores: importance of every layer of the largest network.

    Raises:
        UserError: even its smallest network is larger.
    """
    whole = space.envelope
    if recipe == "width":
        candidates = [_narrower(whole, hidden) for hidden in range(whole.hidden_size, 7, -8)]
    else:
        order = sorted(range(len(whole.layers)), key=lambda i: i if recipe == "last_layers" else -scores[i])
        candidates = [
            replace(whole, layers=tuple(s if i in order[:depth] else None for i, s in enumerate(whole.layers)))
            for depth in range(len(whole.layers), 0, -1)
        ]
    for arch in candidates:
        if count_params(arch, space.base).total <= params:
            return arch
    raise UserError(f"retrain.pruned: {recipe}: no such network has at most {params:,} parameters")


def _narrower(whole: Architecture, hidden_size: int) -> Architecture:
    factor = hidden_size / whole.hidden_size
    layers = tuple(spec and replace(spec, ffn_size=_part_of(spec, factor)) for spec in whole.layers)
    return Architecture(hidden_size, layers)


def _part_of(spec: LayerSpec, factor: float) -> int:
    """So much of the FFN; experts need rows of 16 bytes, also in bf16."""
    size = round(spec.ffn_size * factor)
    return max(8, size - size % 8) if spec.experts > 1 else max(1, size)


def beginnings(space: SearchSpace, budget: Budget, scores: Sequence[float]) -> list[Architecture]:
    """Cuts by importance for a search to begin with: random subsets of many layers hardly ever are the good ones.

    At every depth the most important layers that the policy admits, at every hidden size the widest feed-forward
    within the budget, all else as in the model; the deepest and widest first. Empty where such cuts are no members.

    Args:
        scores: importance of every layer of the largest network.
    """
    whole, layers = space.envelope, range(space.layers)
    found = []
    for depth in reversed(space.depth.choices):
        kept = _most_important(space, depth, scores)
        for hidden_size in reversed(space.hidden_size):
            cuts = (
                Architecture(
                    hidden_size,
                    tuple(
                        replace(s, ffn_size=f) if i in kept and s else None
                        for i, s in zip(layers, whole.layers, strict=True)
                    ),
                )
                for f in reversed(space.ffn_size.choices)
            )
            members = (cut for cut in cuts if space.contains(cut) and budget.admits(space.base, cut))
            found += list(itertools.islice(members, 1))
    return found


def _most_important(space: SearchSpace, depth: int, scores: Sequence[float]) -> tuple[int, ...]:
    if space.depth.policy == "even":
        return even_subset(space.layers, depth)
    order = sorted(range(space.layers), key=lambda i: -scores[i])
    if space.depth.policy == "keep_ends":
        order.sort(key=lambda i: i not in {0, space.layers - 1})
    return tuple(sorted(order[:depth]))


def layer_scores(context: Context) -> list[float]:
    """By how much the loss of the pretrained model grows without each layer, on calibration text; stored."""
    path = context.run.initial.with_name("layers.json")
    if path.exists():
        found = read_as(path, list[FiniteFloat])
        if len(found) != context.config.space.layers:
            raise UserError(f"{path}: damaged: not a score for each layer; delete it to have it made again")
        return found
    config = context.config
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    initial = context.run.check(context.run.require(context.run.initial, "train"))
    model = load_weights(Transformer(config.space, seed=None), initial)
    windows = context.sequences(config.train.seq_len, config.seed, learned=False).fixed(config.train.calibration)
    batches = [torch.from_numpy(windows[i : i + 8]).to(device) for i in range(0, len(windows), 8)]
    context.tracker.progress("layers", 0, 1, f"the model without each of its {config.space.layers} layers")
    scores = layer_importance(model.to(device).eval(), batches)
    write_json(path, scores, context.run.seal)
    context.tracker.progress("layers", 1, 1, f"the least important is layer {scores.index(min(scores))}")
    return scores
