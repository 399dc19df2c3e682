"""Variation operators, closed over the space: whatever goes in, a member comes out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from llmnas.space.architecture import Architecture, LayerSpec
from llmnas.space.space import SearchSpace


def _other(choices: tuple[int, ...], current: int, rng: np.random.Generator) -> int:
    return int(rng.choice([size for size in choices if size != current]))


def _shared_sizes(space: SearchSpace, arch: Architecture) -> dict[str, int]:
    spec = arch.kept[0][1]
    return {name: getattr(spec, name) for name in space.shared_dimensions}


def _change_subset(space: SearchSpace, arch: Architecture, rng: np.random.Generator) -> Architecture:
    """Drop, add or move one layer where the policy allows it, else draw a new depth."""
    kept = dict(arch.kept)
    shared = _shared_sizes(space, arch)
    present, absent = list(kept), [i for i in range(space.layers) if i not in kept]
    options: list[tuple[int | None, int | None]] = [(i, None) for i in present]
    options += [(None, i) for i in absent]
    options += [(i, j) for i in present for j in absent]
    allowed = [
        (drop, add)
        for drop, add in options
        if space.allows(tuple(sorted((set(present) - {drop}) | ({add} if add is not None else set()))))
    ]
    if allowed:
        drop, add = allowed[rng.integers(len(allowed))]
        moved = kept.pop(drop) if drop is not None else space.sample_layer(shared, rng)
        if add is not None:
            kept[add] = moved
        return space.build(arch.hidden_size, kept)
    depth = _other(space.depth.choices, arch.depth, rng)
    specs = [spec for _, spec in arch.kept]
    specs += [space.sample_layer(shared, rng) for _ in range(depth - len(specs))]
    subset = space.sample_subset(depth, rng)
    return space.build(arch.hidden_size, dict(zip(subset, specs, strict=False)))


def mutate(space: SearchSpace, arch: Architecture, rng: np.random.Generator) -> Architecture:
    """Change exactly one decision, each free decision equally likely.

    Returns a different member of the space (the same one where the space has no other).
    """
    moves: list[tuple[str, int]] = []
    if len(space.hidden_size) > 1:
        moves.append(("hidden_size", -1))
    if len(space.depth.choices) > 1 or space.subsets(space.depth.choices[0]) > 1:
        moves.append(("subset", -1))
    moves += [(name, -1) for name in space.shared_dimensions if len(space.dimension(name).choices) > 1]
    moves += [
        (name, i) for i, _ in arch.kept for name in space.layer_dimensions if len(space.dimension(name).choices) > 1
    ]
    if not moves:
        return arch
    name, layer = moves[rng.integers(len(moves))]
    if name == "hidden_size":
        return replace(arch, hidden_size=_other(space.hidden_size, arch.hidden_size, rng))
    if name == "subset":
        return _change_subset(space, arch, rng)
    current = getattr(arch.layers[layer] if layer >= 0 else arch.kept[0][1], name)
    size = _other(space.dimension(name).choices, current, rng)
    return replace(
        arch,
        layers=tuple(
            spec if spec is None or layer not in {-1, i} else replace(spec, **{name: size})
            for i, spec in enumerate(arch.layers)
        ),
    )


def crossover(space: SearchSpace, a: Architecture, b: Architecture, rng: np.random.Generator) -> Architecture:
    """Uniform crossover: every decision comes from one of the parents.

    The set of kept layers is one decision (so that every depth policy holds); the
    sizes of a layer come from either parent that keeps it.
    """
    first, second = (a, b) if rng.integers(2) else (b, a)
    shared = {name: getattr((a, b)[rng.integers(2)].kept[0][1], name) for name in space.shared_dimensions}
    kept: dict[int, LayerSpec] = {}
    for i, spec in first.kept:
        mate = second.layers[i] or spec
        own = {name: getattr((spec, mate)[rng.integers(2)], name) for name in space.layer_dimensions}
        kept[i] = LayerSpec(**shared, **own)
    return space.build((a, b)[rng.integers(2)].hidden_size, kept)
