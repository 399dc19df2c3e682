"""Which part of every weight a step's networks use.

One network uses the leading block of a weight that its stand-alone copy would hold; what several use together is the
union of their blocks, here as boxes that do not overlap. A weight that no network uses is not named.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import nn

from llmnas.nn.elastic_linear import grids
from llmnas.nn.moe import Experts
from llmnas.space.architecture import Architecture, BaseModel, FixedShape, LayerSpec, require_fit
from llmnas.supernet.model import Transformer

Box = tuple[tuple[int, int], ...]
"""(first, end) on every axis of a weight."""


def used_blocks(supernet: Transformer, arch: Architecture) -> dict[str, torch.Size]:
    """How large the leading block is that the sub-network uses of every parameter, by the parameter's name; in the
    shape in which it is sliced, see `grids`.

    What a block of the same sizes holds is asked of the model's own classes, so a new kind of layer needs nothing here.
    What two sub-networks share of a parameter is the smaller size on every axis.

    Raises:
        ValueError: the weights cannot serve the architecture.
    """
    require_fit(supernet, arch)
    blocks: dict[str, torch.Size] = {}
    for i, spec in arch.kept:
        alone = _one_layer(supernet.base, arch.hidden_size, spec)
        mixture = isinstance(supernet.layers[i].ffn, Experts) and spec.experts == 1
        for name, size in alone:
            layer, _, inner = name.partition(".0.")
            if not inner:
                blocks[name] = size
                continue
            # a dense feed-forward is the first expert; its norm belongs to all of them
            first_expert = mixture and inner.startswith("ffn.") and len(size) > 1
            blocks[f"{layer}.{i}.{inner}"] = torch.Size((1, *size)) if first_expert else size
    return blocks


def active_boxes(supernet: Transformer, networks: Sequence[Architecture]) -> dict[str, tuple[Box, ...]]:
    """What the networks use together of every parameter, by its name: boxes that do not overlap."""
    sizes: dict[str, set[torch.Size]] = {}
    for arch in networks:
        for name, size in used_blocks(supernet, arch).items():
            sizes.setdefault(name, set()).add(size)
    return {name: union(found) for name, found in sizes.items()}


def union(sizes: Iterable[torch.Size]) -> tuple[Box, ...]:
    """Leading blocks as boxes that do not overlap and cover what at least one of the blocks covers."""
    return _union(frozenset(sizes))


def hull(boxes: tuple[Box, ...]) -> Box:
    """The smallest leading block that holds all boxes."""
    return tuple((0, max(box[axis][1] for box in boxes)) for axis in range(len(boxes[0])))


@lru_cache(maxsize=4096)
def _union(sizes: frozenset[torch.Size]) -> tuple[Box, ...]:
    found: list[Box] = []
    seen: list[torch.Size] = []
    for size in sorted(sizes, key=lambda size: (-size.numel(), size)):
        pieces: list[Box] = [tuple((0, length) for length in size)]
        for before in seen:
            pieces = [left for piece in pieces for left in _without(piece, before)]
        found += pieces
        seen.append(size)
    return tuple(found)


def _without(box: Box, leading: torch.Size) -> list[Box]:
    """What is left of a box outside of a leading block."""
    left: list[Box] = []
    for axis, (length, (first, end)) in enumerate(zip(leading, box, strict=True)):
        if end > length:
            left.append((*box[:axis], (max(first, length), end), *box[axis + 1 :]))
        if first >= length:
            return left  # the rest lies outside of the block and is in the piece just taken
        box = (*box[:axis], (first, min(end, length)), *box[axis + 1 :])
    return left


@lru_cache(maxsize=4096)
def _one_layer(base: BaseModel, hidden_size: int, spec: LayerSpec) -> tuple[tuple[str, torch.Size], ...]:
    """Names and sizes of the parameters of a network of this one layer."""
    with torch.device("meta"):
        alone: nn.Module = Transformer(FixedShape(base, Architecture(hidden_size, (spec,))), seed=None)
    shapes = grids(alone)
    return tuple((name, shapes.get(name, parameter.shape)) for name, parameter in alone.named_parameters())
