"""Hand-designed shapes: the proportions of well-known models, scaled to a parameter count."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from llmnas.cost.params import count_params
from llmnas.errors import UserError
from llmnas.space import Architecture, BaseModel, LayerSpec, Mixer


class Proportions(NamedTuple):
    """What a family keeps when it grows: hidden per layer, FFN per hidden, mixer's width per hidden, group, mixer."""

    aspect: float
    ffn_ratio: float
    query_ratio: float
    queries_per_group: int
    mixer: Mixer = "attention"


# From the published configs of SmolLM2-135M, Qwen3-0.6B and Llama-3.2-1B. The last one is no published model: it is
# what a person would try first where MLGRU is at hand, so that a search over mixers has more to beat than attention.
FAMILIES = {
    "smollm2": Proportions(576 / 30, 1536 / 576, 1.0, 3),
    "qwen3": Proportions(1024 / 28, 3072 / 1024, 2.0, 2),
    "llama3": Proportions(2048 / 16, 8192 / 2048, 1.0, 4),
    "smollm2_mlgru": Proportions(576 / 30, 1536 / 576, 1.0, 1, "mlgru"),
}


def hand_designed(family: str, base: BaseModel, head_dim: int, params: int, tolerance: float = 0.02) -> Architecture:
    """The family's shape at `params` parameters, at most and within `tolerance`.

    Depth and width follow the family's aspect ratio as closely as the count allows; the
    FFN takes up what rounding leaves.

    Raises:
        UserError: no depth fits the count.
    """
    p = FAMILIES[family]
    best: tuple[float, int, LayerSpec, int] | None = None
    thinnest = [_thinnest(p, base, head_dim, hidden_size) for hidden_size in range(8, 8193, 8)]
    for depth in range(1, 129):
        for hidden_size, spec, outside, layer in thinnest:
            channel = 3 * hidden_size * depth
            bare = outside + depth * layer
            ffn_size = 1 + (params - bare) // channel
            if ffn_size < hidden_size:
                break
            ffn_size -= ffn_size % 4
            if bare + channel * (ffn_size - 1) < (1 - tolerance) * params:
                continue
            error = abs(math.log(hidden_size / depth / p.aspect)) + abs(math.log(ffn_size / hidden_size / p.ffn_ratio))
            if best is None or error < best[0]:
                best = (error, hidden_size, replace(spec, ffn_size=ffn_size), depth)
    if best is None:
        raise UserError(f"no {family} shape has {params:,} parameters with a vocabulary of {base.vocab_size}")
    _, hidden_size, spec, depth = best
    return Architecture(hidden_size, (spec,) * depth)


def _thinnest(p: Proportions, base: BaseModel, head_dim: int, hidden_size: int) -> tuple[int, LayerSpec, int, int]:
    """(width, a layer of it with one FFN channel, parameters outside of layers, parameters of that layer)."""
    kv_heads = max(1, round(hidden_size * p.query_ratio / head_dim / p.queries_per_group))
    spec = LayerSpec(kv_heads, p.queries_per_group, head_dim, 1, mixer=p.mixer)
    one, two = (count_params(Architecture(hidden_size, (spec,) * depth), base).total for depth in (1, 2))
    return hidden_size, spec, 2 * one - two, two - one
