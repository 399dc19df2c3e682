"""Variation operators, closed over the space: whatever goes in, a member comes out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from llmnas.space.architecture import DIMENSIONS, Architecture, LayerSpec
from llmnas.space.space import SearchSpace


def _other(choices: tuple[Any, ...], current: Any, rng: np.random.Generator) -> Any:
    others = [choice for choice in choices if choice != current]
    return others[rng.integers(len(others))]


def _value(space: SearchSpace, arch: Architecture, name: str, rng: np.random.Generator) -> Any:
    """The value of a shared dimension; a new one where no layer uses it."""
    for _, spec in arch.kept:
        if spec.uses(name):
            return getattr(spec, name)
    return space.draw(name, rng)


def _change_subset(space: SearchSpace, arch: Architecture, rng: np.random.Generator) -> Architecture:
    """Drop, add or move one layer, or go to a depth that is not one layer away; where the policy allows it."""
    kept = dict(arch.kept)
    present, absent = list(kept), [i for i in range(space.layers) if i not in kept]
    options: list[tuple[int | None, int | None]] = [(i, None) for i in present]
    options += [(None, i) for i in absent]
    options += [(i, j) for i in present for j in absent]
    allowed = [
        (drop, add)
        for drop, add in options
        if space.allows(tuple(sorted((set(present) - {drop}) | ({add} if add is not None else set()))))
    ]
    near = {arch.depth - (drop is not None) + (add is not None) for drop, add in allowed} | {arch.depth}
    far = [depth for depth in space.depth.choices if depth not in near]
    move = int(rng.integers(len(allowed) + len(far)))
    shared = {name: _value(space, arch, name, rng) for name in space.shared_dimensions}
    if move < len(allowed):
        drop, add = allowed[move]
        moved = kept.pop(drop) if drop is not None else space.sample_layer(shared, rng)
        if add is not None:
            kept[add] = moved
        return space.build(arch.hidden_size, kept)
    depth = far[move - len(allowed)]
    specs = [spec for _, spec in arch.kept]
    order = sorted(rng.permutation(len(specs))[:depth].tolist())
    specs = [specs[i] for i in order] + [space.sample_layer(shared, rng) for _ in range(depth - len(specs))]
    return space.build(arch.hidden_size, dict(zip(space.sample_subset(depth, rng), specs, strict=True)))


def mutate(space: SearchSpace, arch: Architecture, rng: np.random.Generator) -> Architecture:
    """Change exactly one decision, each free decision equally likely.

    A change of kind (no mixer -> attention) makes further sizes matter: those are drawn anew.
    Returns a different member of the space (the same one where the space has no other).
    """
    free = [name for name in DIMENSIONS if len(space.dimension(name).choices) > 1]
    moves: list[tuple[str, int]] = []
    if len(space.hidden_size) > 1:
        moves.append(("hidden_size", -1))
    if len(space.depth.choices) > 1 or space.subsets(space.depth.choices[0]) > 1:
        moves.append(("subset", -1))
    moves += [
        (name, -1) for name in space.shared_dimensions if name in free and any(spec.uses(name) for _, spec in arch.kept)
    ]
    moves += [(name, i) for i, spec in arch.kept for name in space.layer_dimensions if name in free and spec.uses(name)]
    if not moves:
        return arch
    name, layer = moves[rng.integers(len(moves))]
    if name == "hidden_size":
        return replace(arch, hidden_size=_other(space.hidden_size, arch.hidden_size, rng))
    if name == "subset":
        return _change_subset(space, arch, rng)
    changed = [i for i, spec in arch.kept if layer in {-1, i} and spec.uses(name)]
    current = getattr(dict(arch.kept)[changed[0]], name)
    value = _other(space.dimension(name).choices, current, rng)
    shared = {other: _value(space, arch, other, rng) for other in space.shared_dimensions}
    layers = {i: _with(space, spec, name, value, shared, rng) if i in changed else spec for i, spec in arch.kept}
    return space.build(arch.hidden_size, layers)


def _with(
    space: SearchSpace, spec: LayerSpec, name: str, value: Any, shared: dict[str, Any], rng: np.random.Generator
) -> LayerSpec:
    """The layer with one dimension changed, and a value for every dimension that matters only now."""
    bare = replace(spec, **{name: value})
    fresh = {
        other: shared[other] if other in shared else space.draw(other, rng)
        for other in DIMENSIONS
        if other != name and bare.uses(other) and not spec.uses(other)
    }
    return replace(spec, **{name: value, **fresh})


def crossover(space: SearchSpace, a: Architecture, b: Architecture, rng: np.random.Generator) -> Architecture:
    """Uniform crossover: every decision comes from one of the parents.

    The set of kept layers is one decision (so that every depth policy holds); the
    values of a layer come from either parent that keeps it and uses them.
    """
    first, second = (a, b) if rng.integers(2) else (b, a)
    parents = (a, b)
    shared: dict[str, Any] = {}
    for name in space.shared_dimensions:
        users = [p for p in parents if any(spec.uses(name) for _, spec in p.kept)]
        shared[name] = _value(space, users[rng.integers(len(users))] if users else a, name, rng)
    kept: dict[int, LayerSpec] = {}
    for i, spec in first.kept:
        pair = (spec, second.layers[i] or spec)
        own: dict[str, Any] = {}
        for name in space.layer_dimensions:
            sources = [source for source in pair if source.uses(name)]
            own[name] = getattr(sources[rng.integers(len(sources))], name) if sources else space.draw(name, rng)
        kept[i] = LayerSpec(**shared, **own)
    return space.build(parents[rng.integers(2)].hidden_size, kept)
