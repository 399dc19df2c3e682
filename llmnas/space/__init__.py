"""Architectures and search spaces: plain values, no torch."""

from llmnas.space.architecture import (
    DIMENSIONS,
    Architecture,
    BaseModel,
    FixedShape,
    LayerSpec,
    Shape,
)
from llmnas.space.encode import cardinalities, decode, encode, features
from llmnas.space.mutate import crossover, mutate
from llmnas.space.space import Choice, Depth, SearchSpace, even_subset

__all__ = [
    "DIMENSIONS",
    "Architecture",
    "BaseModel",
    "Choice",
    "Depth",
    "FixedShape",
    "LayerSpec",
    "SearchSpace",
    "Shape",
    "cardinalities",
    "crossover",
    "decode",
    "encode",
    "even_subset",
    "features",
    "mutate",
]
