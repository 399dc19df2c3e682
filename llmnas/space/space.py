"""The search space: which architectures exist, how many, and how to draw one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel as Model
from pydantic import BeforeValidator, ConfigDict, PositiveInt, ValidationError, field_validator, model_validator

from llmnas.errors import UserError, explain
from llmnas.files import read_yaml
from llmnas.space.architecture import DIMENSIONS, Architecture, BaseModel, LayerSpec

DepthPolicy = Literal["any", "keep_ends", "even"]


def _one_list(value: Any) -> Any:
    """Let YAML say `32` for `[32]`."""
    return [value] if isinstance(value, int) and not isinstance(value, bool) else value


def _as_mapping(value: Any) -> Any:
    """Let YAML say `[1, 2]` or `2` for `{choices: [1, 2]}`."""
    value = _one_list(value)
    return {"choices": value} if isinstance(value, list | tuple) else value


def _sorted_distinct(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if not sizes:
        raise ValueError("no choices; give at least one positive integer")
    if len(set(sizes)) != len(sizes):
        raise ValueError(f"choices must be distinct, got {list(sizes)}")
    return tuple(sorted(sizes))


class _Strict(Model):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Choice(_Strict):
    """The sizes one dimension may take; per layer, or one size shared by all layers."""

    choices: tuple[PositiveInt, ...]
    per_layer: bool = False

    _check = field_validator("choices")(_sorted_distinct)


class Depth(_Strict):
    """How many layers may be kept, and which subsets of that size.

    `any`: every subset; `keep_ends`: the first and the last layer always stay;
    `even`: one evenly spaced subset for each depth.
    """

    choices: tuple[PositiveInt, ...]
    policy: DepthPolicy = "any"

    _check = field_validator("choices")(_sorted_distinct)


def even_subset(layers: int, depth: int) -> tuple[int, ...]:
    """`depth` of `layers` indices, evenly spaced with both ends (one alone: the first)."""
    if depth == 1:
        return (0,)
    return tuple(round(i * (layers - 1) / (depth - 1)) for i in range(depth))


class SearchSpace(_Strict):
    """All architectures that one supernet holds.

    `hidden_size` is global (one residual stream). Every dimension of `LayerSpec` is
    either one choice for the whole network or one for each layer.
    """

    base: BaseModel
    layers: PositiveInt
    hidden_size: Annotated[tuple[PositiveInt, ...], BeforeValidator(_one_list)]
    depth: Annotated[Depth, BeforeValidator(_as_mapping)]
    kv_heads: Annotated[Choice, BeforeValidator(_as_mapping)]
    queries_per_group: Annotated[Choice, BeforeValidator(_as_mapping)]
    head_dim: Annotated[Choice, BeforeValidator(_as_mapping)]
    ffn_size: Annotated[Choice, BeforeValidator(_as_mapping)]

    _check_hidden = field_validator("hidden_size")(_sorted_distinct)

    @field_validator("head_dim")
    @classmethod
    def _even_head_dim(cls, value: Choice) -> Choice:
        odd = [size for size in value.choices if size % 2]
        if odd:
            raise ValueError(f"RoPE rotates pairs of channels, so head_dim must be even, got {odd}")
        return value

    @model_validator(mode="after")
    def _depth_fits(self) -> Self:
        low = 2 if self.depth.policy == "keep_ends" and self.layers > 1 else 1
        wrong = [d for d in self.depth.choices if not low <= d <= self.layers]
        if wrong:
            raise ValueError(
                f"depth.choices must lie in [{low}, {self.layers}] "
                f"(layers: {self.layers}, policy: {self.depth.policy}), got {wrong}"
            )
        return self

    @classmethod
    def from_dict(cls, value: dict[str, Any], where: str = "space") -> SearchSpace:
        """Build from plain values; a wrong one is a `UserError` that begins with `where`."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise explain(where, error) from None

    @classmethod
    def from_yaml(cls, path: str | Path) -> SearchSpace:
        """Build from a YAML file that holds the space, or a run's config with a `space:` key."""
        value = read_yaml(Path(path))
        return cls.from_dict(value.get("space", value), str(path))

    def dimension(self, name: str) -> Choice:
        """The choices of one dimension of `LayerSpec`, by its name."""
        choice = getattr(self, name)
        assert isinstance(choice, Choice)
        return choice

    @cached_property
    def shared_dimensions(self) -> tuple[str, ...]:
        """Dimensions that have one size for all layers."""
        return tuple(name for name in DIMENSIONS if not self.dimension(name).per_layer)

    @cached_property
    def layer_dimensions(self) -> tuple[str, ...]:
        """Dimensions that every layer chooses for itself."""
        return tuple(name for name in DIMENSIONS if self.dimension(name).per_layer)

    def settings(self, names: tuple[str, ...]) -> Iterator[dict[str, int]]:
        """Every combination of sizes of the named dimensions, in lexicographic order."""
        for sizes in itertools.product(*(self.dimension(name).choices for name in names)):
            yield dict(zip(names, sizes, strict=True))

    def subsets(self, depth: int) -> int:
        """How many sets of kept layers have this depth."""
        if self.depth.policy == "even":
            return 1
        if self.depth.policy == "keep_ends" and self.layers > 1:
            return math.comb(self.layers - 2, depth - 2)
        return math.comb(self.layers, depth)

    def sample_subset(self, depth: int, rng: np.random.Generator) -> tuple[int, ...]:
        """Kept layers, uniform over the subsets of this depth that the policy allows."""
        if self.depth.policy == "even":
            return even_subset(self.layers, depth)
        if self.depth.policy == "keep_ends" and self.layers > 1:
            inner = rng.choice(self.layers - 2, depth - 2, replace=False) + 1
            return (0, *sorted(inner.tolist()), self.layers - 1)
        return tuple(sorted(rng.choice(self.layers, depth, replace=False).tolist()))

    def allows(self, kept: tuple[int, ...]) -> bool:
        """Whether this set of layers may be kept."""
        if len(kept) not in self.depth.choices:
            return False
        if self.depth.policy == "even":
            return kept == even_subset(self.layers, len(kept))
        if self.depth.policy == "keep_ends":
            return kept[0] == 0 and kept[-1] == self.layers - 1
        return True

    def size(self) -> int:
        """The exact number of different architectures."""
        shared = math.prod(len(self.dimension(name).choices) for name in self.shared_dimensions)
        layer = math.prod(len(self.dimension(name).choices) for name in self.layer_dimensions)
        depths = sum(self.subsets(depth) * layer**depth for depth in self.depth.choices)
        return int(len(self.hidden_size) * shared * depths)

    def contains(self, arch: Architecture) -> bool:
        """Whether the architecture is one of this space."""
        if arch.hidden_size not in self.hidden_size or len(arch.layers) != self.layers:
            return False
        if not self.allows(tuple(i for i, _ in arch.kept)):
            return False
        specs = [spec for _, spec in arch.kept]
        if any(getattr(spec, name) not in self.dimension(name).choices for spec in specs for name in DIMENSIONS):
            return False
        return all(len({getattr(spec, name) for spec in specs}) == 1 for name in self.shared_dimensions)

    def sample(self, rng: np.random.Generator) -> Architecture:
        """One architecture; every decision (hidden size, depth, subset, sizes) is uniform."""
        hidden_size = int(rng.choice(self.hidden_size))
        shared = {name: int(rng.choice(self.dimension(name).choices)) for name in self.shared_dimensions}
        kept = self.sample_subset(int(rng.choice(self.depth.choices)), rng)
        return self.build(hidden_size, {i: self.sample_layer(shared, rng) for i in kept})

    def sample_layer(self, shared: dict[str, int], rng: np.random.Generator) -> LayerSpec:
        """A layer with the shared sizes given and its own drawn uniformly."""
        own = {name: int(rng.choice(self.dimension(name).choices)) for name in self.layer_dimensions}
        return LayerSpec(**shared, **own)

    def build(self, hidden_size: int, kept: dict[int, LayerSpec]) -> Architecture:
        """The architecture that keeps these layers and skips the others."""
        return Architecture(hidden_size, tuple(kept.get(i) for i in range(self.layers)))

    def _extreme(self, pick: Callable[[tuple[int, ...]], int]) -> Architecture:
        spec = LayerSpec(**{name: pick(self.dimension(name).choices) for name in DIMENSIONS})
        kept = even_subset(self.layers, pick(self.depth.choices))
        return self.build(pick(self.hidden_size), dict.fromkeys(kept, spec))

    def smallest(self) -> Architecture:
        """Every size at its least; the kept layers evenly spaced."""
        return self._extreme(min)

    def largest(self) -> Architecture:
        """Every size at its greatest."""
        return self._extreme(max)

    def middle(self) -> Architecture:
        """Every size at the middle of its choices."""
        return self._extreme(lambda choices: choices[len(choices) // 2])

    @property
    def envelope(self) -> Architecture:
        """The sizes of the weights that hold every architecture: all layers at their greatest."""
        spec = LayerSpec(**{name: max(self.dimension(name).choices) for name in DIMENSIONS})
        return Architecture(max(self.hidden_size), (spec,) * self.layers)

    def require(self, arch: Architecture) -> Architecture:
        """The architecture itself, or a `UserError` when it is not of this space."""
        if not self.contains(arch):
            raise UserError(f"architecture {arch.id} ({arch.to_json()}) is not in the search space")
        return arch
