"""Architectures and search spaces: plain values, no torch."""

from llmnas.space.architecture import (
    DIMENSIONS,
    KINDS,
    SIZES,
    Architecture,
    BaseModel,
    FixedShape,
    LayerKinds,
    LayerSpec,
    Mixer,
    Shape,
    Weights,
    plain_number,
)
from llmnas.space.encode import cardinalities, decode, encode, features
from llmnas.space.mutate import crossover, mutate
from llmnas.space.space import Choice, Depth, SearchSpace, even_subset

__all__ = [
    "DIMENSIONS",
    "KINDS",
    "SIZES",
    "Architecture",
    "BaseModel",
    "Choice",
    "Depth",
    "FixedShape",
    "LayerKinds",
    "LayerSpec",
    "Mixer",
    "SearchSpace",
    "Shape",
    "Weights",
    "cardinalities",
    "crossover",
    "decode",
    "encode",
    "even_subset",
    "features",
    "mutate",
    "plain_number",
]
