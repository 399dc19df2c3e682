"""Architectures as vectors: an exact integer code, and features for predictors."""

from __future__ import annotations

import numpy as np

from llmnas.space.architecture import DIMENSIONS, Architecture, LayerSpec
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
    """Indices into the choices, `[positions]` int64; a skipped layer is all zeros."""
    spec = arch.kept[0][1]
    code = [space.hidden_size.index(arch.hidden_size)]
    code += [space.dimension(name).choices.index(getattr(spec, name)) for name in space.shared_dimensions]
    for layer in arch.layers:
        if layer is None:
            code += [0] * (1 + len(space.layer_dimensions))
        else:
            code.append(1)
            code += [space.dimension(name).choices.index(getattr(layer, name)) for name in space.layer_dimensions]
    return np.array(code, dtype=np.int64)


def decode(space: SearchSpace, code: np.ndarray) -> Architecture:
    """Inverse of `encode`: decode(encode(a)) == a.

    Raises:
        ValueError: the vector has another length or an index out of range.
    """
    limits = cardinalities(space)
    if len(code) != len(limits) or any(not 0 <= c < n for c, n in zip(code, limits, strict=True)):
        raise ValueError(f"not a code of this space: need {len(limits)} indices below {limits}")
    values = iter(int(c) for c in code)
    hidden_size = space.hidden_size[next(values)]
    shared = {name: space.dimension(name).choices[next(values)] for name in space.shared_dimensions}
    kept: dict[int, LayerSpec] = {}
    for i in range(space.layers):
        flag = next(values)
        own = {name: space.dimension(name).choices[next(values)] for name in space.layer_dimensions}
        if flag:
            kept[i] = LayerSpec(**shared, **own)
    return space.build(hidden_size, kept)


def features(space: SearchSpace, arch: Architecture) -> np.ndarray:
    """Real sizes for a regression, `[1 + layers * dimensions]` float64 in [0, 1]; a skip is 0."""
    row = [arch.hidden_size / max(space.hidden_size)]
    for layer in arch.layers:
        row += [getattr(layer, name) / max(space.dimension(name).choices) if layer else 0.0 for name in DIMENSIONS]
    return np.array(row)
