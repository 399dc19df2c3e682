"""Architectures as vectors: an exact integer code, and features for predictors."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmnas.space.architecture import KINDS, SIZES, Architecture, LayerSpec
from llmnas.space.space import SearchSpace


def cardinalities(space: SearchSpace) -> list[int]:
    """How many values each position of the code can take.

    Positions: hidden size, shared dimensions, then for each layer a keep flag and the
    dimensions that layer chooses for itself.
    """
    shared = [len(space.dimension(name).choices) for name in space.shared_dimensions]
    layer = [2, *(len(space.dimension(name).choices) for name in space.layer_dimensions)]
    return [len(space.hidden_size), *shared, *(layer * space.layers)]


def encode(space: SearchSpace, arch: Architecture) -> np.ndarray:
    """Indices into the choices, `[positions]` int64; a skipped layer, and what a layer does not use, is zero."""
    code = encode_globals(space, arch)
    for layer in arch.layers:
        code.append(int(layer is not None))
        code += [_index(space, layer, name) if layer and layer.uses(name) else 0 for name in space.layer_dimensions]
    return np.array(code, dtype=np.int64)


def encode_globals(space: SearchSpace, arch: Architecture) -> list[int]:
    """What a code begins with: hidden size and shared dimensions."""
    specs = [spec for _, spec in arch.kept]
    shared = [
        next((_index(space, spec, name) for spec in specs if spec.uses(name)), 0) for name in space.shared_dimensions
    ]
    return [space.hidden_size.index(arch.hidden_size), *shared]


def _index(space: SearchSpace, spec: LayerSpec, name: str) -> int:
    return space.dimension(name).choices.index(getattr(spec, name))


def decode(space: SearchSpace, code: np.ndarray) -> Architecture:
    """Inverse of `encode`: decode(encode(a)) == a.

    Raises:
        ValueError: another length, an index out of range, a depth or subset that the space does not have, or
            a number other than zero for what is not used.
    """
    limits = cardinalities(space)
    whole = [int(c) if np.isfinite(c) else -1 for c in code]
    if len(code) != len(limits) or any(w != c or not 0 <= w < n for w, c, n in zip(whole, code, limits, strict=True)):
        raise ValueError(f"not a code of this space: need {len(limits)} indices below {limits}")
    values = iter(whole)

    def read(names: tuple[str, ...]) -> dict[str, Any]:
        return {name: space.dimension(name).choices[next(values)] for name in names}

    hidden_size = space.hidden_size[next(values)]
    shared = read(space.shared_dimensions)
    kept: dict[int, LayerSpec] = {}
    for i in range(space.layers):
        flag = next(values)
        own = read(space.layer_dimensions)
        if flag:
            kept[i] = LayerSpec(**shared, **own)
    if not space.allows(tuple(kept)):
        raise ValueError(f"not a code of this space: layers {list(kept)} are no subset that its depths allow")
    arch = space.build(hidden_size, kept)
    if whole != encode(space, arch).tolist():
        raise ValueError("not a code of this space: what is skipped or not used must be zero")
    return arch


def features(space: SearchSpace, arch: Architecture) -> np.ndarray:
    """Real numbers for a regression, `[1 + layers * columns]` float64 in [0, 1]; a skip is all zeros.

    Columns of a layer: every size that has choices over its greatest (0 where it is not used), then one for each
    kind of `weights` and `mixer` that the space offers, where it offers more than one.
    """
    sizes = [name for name in SIZES if space.dimension(name).choices not in {(0,), (1,)}]
    kinds = [(name, kind) for name in KINDS for kind in space.dimension(name).choices]
    kinds = [(name, kind) for name, kind in kinds if len(space.dimension(name).choices) > 1]
    row = [arch.hidden_size / max(space.hidden_size)]
    for layer in arch.layers:
        row += [
            getattr(layer, name) / space.dimension(name).choices[-1] if layer and layer.uses(name) else 0.0
            for name in sizes
        ]
        row += [float(layer is not None and getattr(layer, name) == kind) for name, kind in kinds]
    return np.array(row)
