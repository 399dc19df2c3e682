"""From what routers learnt to an architecture: how many experts a layer needs, and how many a token.

The rule, for each layer with a router, with the thresholds of a `Level`:

1. Experts in the order of their contribution (load times output norm). One is needed where it contributes at least
   `least` of an even share, unless its outputs are like (cosine at least `alike`) those of a needed one before it.
2. The layer gets the least number of experts that the space offers for as many as are needed.
3. A token gets the least k that the space offers under which its first k choices carry `mass` of its weight.

Experts of a sub-network are the leading ones, whichever were found to be needed: whether those are the best is measured
(the proposal's loss), never assumed. Where a choice is shared by all layers, the layer that needs most decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from llmnas.space import Architecture, LayerSpec, SearchSpace


class Level(NamedTuple):
    """Thresholds of the rule."""

    least: float
    alike: float
    mass: float


LEVELS = {"cautious": Level(0.25, 0.98, 0.95), "even": Level(0.5, 0.95, 0.9), "bold": Level(0.8, 0.9, 0.75)}


@dataclass(frozen=True)
class LayerFindings:
    """What the rule looks at, of one layer.

    Attributes:
        contribution: [E] shares that sum to one.
        similarity: [E][E] cosine of the outputs.
        mass: [K] share of the weight that the first 1 to K choices carry.
    """

    contribution: Sequence[float]
    similarity: Sequence[Sequence[float]]
    mass: Sequence[float]


def needed(found: LayerFindings, level: Level) -> list[int]:
    """The experts that a layer needs, the most contributing first (step 1)."""
    even = 1 / len(found.contribution)
    kept: list[int] = []
    for e in sorted(range(len(found.contribution)), key=lambda e: (-found.contribution[e], e)):
        if found.contribution[e] >= level.least * even and all(found.similarity[e][f] < level.alike for f in kept):
            kept.append(e)
    return kept


def choices_a_token(found: LayerFindings, level: Level) -> int:
    """The least k whose first choices carry the level's share of the weight (before the space has its say)."""
    return next((k for k, mass in enumerate(found.mass, start=1) if mass >= level.mass - 1e-9), len(found.mass))


def propose(
    space: SearchSpace, arch: Architecture, findings: Mapping[int, LayerFindings], level: Level
) -> Architecture:
    """The architecture with E and k by the rule at every layer that has findings; never more than it has now."""
    wanted = {i: len(needed(found, level)) for i, found in findings.items()}
    token = {i: choices_a_token(found, level) for i, found in findings.items()}
    if not space.experts.per_layer:
        wanted = dict.fromkeys(wanted, max(wanted.values(), default=1))
    if not space.top_k.per_layer:
        token = dict.fromkeys(token, max(token.values(), default=1))

    def changed(i: int, spec: LayerSpec) -> LayerSpec:
        if i not in findings:
            return spec
        experts = _least(space.experts.choices, wanted[i], spec.experts)
        return replace(spec, experts=experts, top_k=_least(space.top_k.choices, token[i], spec.top_k))

    layers = tuple(spec and changed(i, spec) for i, spec in enumerate(arch.layers))
    return space.require(Architecture(arch.hidden_size, layers))


def _least(choices: Sequence[int], wanted: int, now: int) -> int:
    """The least choice that is at least what is wanted; at most what there is now."""
    return min((choice for choice in choices if choice >= wanted), default=now) if wanted < now else now
