"""The search space: which architectures exist, how many, and how to draw one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

import numpy as np
from pydantic import BaseModel as Model
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from llmnas.errors import UserError, explain
from llmnas.files import read_yaml, user_path
from llmnas.space.architecture import (
    DIMENSIONS,
    KINDS,
    Architecture,
    BaseModel,
    LayerKinds,
    LayerSpec,
    Mixer,
    Weights,
)
from llmnas.space.count import count_fillings

DepthPolicy = Literal["any", "keep_ends", "even"]
MOST_LAYERS = 10_000  # every architecture lists them all
T = TypeVar("T", int, Weights, Mixer)


def _plain(value: Any) -> Any:
    """A number or array of NumPy as Python's."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


Size = Annotated[int, Field(gt=0, lt=2**31, strict=True), BeforeValidator(_plain)]
Count = Annotated[int, Field(ge=0, strict=True), BeforeValidator(_plain)]


def _one_list(value: Any) -> Any:
    """Let YAML say `32` for `[32]`."""
    value = _plain(value)
    return [value] if isinstance(value, int | str) else value


def _as_mapping(value: Any) -> Any:
    """Let YAML say `[1, 2]` or `2` for `{choices: [1, 2]}`."""
    value = _one_list(value)
    return {"choices": value} if isinstance(value, list | tuple) else value


def _sorted_distinct(choices: tuple[Any, ...]) -> tuple[Any, ...]:
    if not choices:
        raise ValueError("no choices; give at least one positive integer (or kind)")
    if len(set(choices)) != len(choices):
        raise ValueError(f"choices must be distinct, got {list(choices)}")
    order = [kind for kinds in KINDS.values() for kind in kinds]
    return tuple(sorted(choices, key=lambda choice: order.index(choice) if isinstance(choice, str) else choice))


def _no_truth_for_a_number(value: Any) -> Any:
    """YAML's `yes` is True, which pydantic would take for the number 1."""
    if isinstance(value, dict):
        value = {name: _plain(number) for name, number in value.items()}
        for name in ("vocab_size", "max_seq", "rope_theta", "rope_dim", "norm_eps"):
            if isinstance(value.get(name), bool):
                raise ValueError(f"{name} must be a number, got {value[name]}")
    return value


class _Strict(Model):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Choice(_Strict, Generic[T]):
    """The values one dimension may take, ascending; per layer, or one value shared by all layers."""

    choices: tuple[T, ...]
    per_layer: bool = False

    _check = field_validator("choices")(_sorted_distinct)


SizeChoice = Annotated[Choice[Size], BeforeValidator(_as_mapping)]
CountChoice = Annotated[Choice[Count], BeforeValidator(_as_mapping)]
# named here, as pickle finds a class by its name in the module
WeightsChoice = Annotated[Choice[Weights], BeforeValidator(_as_mapping)]
MixerChoice = Annotated[Choice[Mixer], BeforeValidator(_as_mapping)]


class Depth(_Strict):
    """How many layers may be kept, and which subsets of that size.

    `any`: every subset; `keep_ends`: the first and the last layer always stay;
    `even`: one evenly spaced subset for each depth.
    """

    choices: tuple[Size, ...]
    policy: DepthPolicy = "any"

    _check = field_validator("choices")(_sorted_distinct)


def even_subset(layers: int, depth: int) -> tuple[int, ...]:
    """`depth` of `layers` indices, evenly spaced with both ends (one alone: the first)."""
    if depth == 1:
        return (0,)
    return tuple(round(i * (layers - 1) / (depth - 1)) for i in range(depth))


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


class SearchSpace(_Strict):
    """All architectures that one supernet holds.

    `hidden_size` is global (one residual stream). Every dimension of `LayerSpec` is
    either one choice for the whole network or one for each layer.
    """

    base: Annotated[BaseModel, BeforeValidator(_no_truth_for_a_number)]
    layers: Annotated[int, Field(gt=0, le=MOST_LAYERS, strict=True), BeforeValidator(_plain)]
    hidden_size: Annotated[tuple[Size, ...], BeforeValidator(_one_list)]
    depth: Annotated[Depth, BeforeValidator(_as_mapping)]
    kv_heads: SizeChoice
    queries_per_group: SizeChoice
    head_dim: SizeChoice
    ffn_size: SizeChoice
    weights: WeightsChoice = Choice[Weights](choices=("dense",))
    mixer: MixerChoice = Choice[Mixer](choices=("attention",))
    experts: SizeChoice = Choice[Size](choices=(1,))
    top_k: SizeChoice = Choice[Size](choices=(1,))
    shared_experts: CountChoice = Choice[Count](choices=(0,))

    _check_hidden = field_validator("hidden_size")(_sorted_distinct)

    @field_validator("head_dim")
    @classmethod
    def _even_head_dim(cls, value: Choice[int]) -> Choice[int]:
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

    @model_validator(mode="after")
    def _experts_fit(self) -> Self:
        uneven = [size for size in (*self.hidden_size, *self.ffn_size.choices) if size % 4]
        if max(self.experts.choices) > 1 and uneven:
            raise ValueError(
                "with experts every hidden_size and ffn_size must be a multiple of 4 (rows of 16 bytes in float32), "
                f"got {uneven}"
            )
        if max(self.experts.choices) == 1 and max(self.shared_experts.choices) > 0:
            raise ValueError(
                "shared_experts: stand beside experts to choose from, but experts is [1]; "
                f"got {list(self.shared_experts.choices)}"
            )
        several = [experts for experts in self.experts.choices if experts > 1]
        wrong = [k for k in self.top_k.choices if k > min(several, default=1)]
        if wrong:
            raise ValueError(
                f"top_k.choices must be at most the least number of experts above 1 "
                f"(experts: {list(self.experts.choices)}), got {wrong}"
            )
        return self

    @model_validator(mode="after")
    def _base_fits(self) -> Self:
        """Low-bit layers, MLGRUs and experts are written for the usual blocks."""
        base, dense = self.base, self.weights.choices == ("dense",) and max(self.experts.choices) == 1
        if not base.usual and not (dense and "mlgru" not in self.mixer.choices):
            raise ValueError("base: norms and activations unlike a Llama's need dense weights, attention, no experts")
        if base.layer_rope and max(base.layer_rope.layers) >= self.layers:
            raise ValueError(f"base.layer_rope.layers: {max(base.layer_rope.layers)} is none of {self.layers} layers")
        return self

    @model_validator(mode="after")
    def _rope_reaches(self) -> Self:
        widest = max(self.head_dim.choices)
        if self.base.rope_dim is not None and self.base.rope_dim < widest:
            raise ValueError(f"base.rope_dim = {self.base.rope_dim} must be at least the largest head_dim, {widest}")
        return self

    @classmethod
    def from_dict(cls, value: dict[str, Any], where: str = "space") -> SearchSpace:
        """Build from plain values; a wrong one is a `UserError` that begins with `where`."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise explain(where, error, cls) from None

    @classmethod
    def from_yaml(cls, path: str | Path) -> SearchSpace:
        """Build from a YAML file that holds the space, or a run's config with a `space:` key."""
        value = read_yaml(user_path(path))
        return cls.from_dict(value.get("space", value), str(path))

    def dimension(self, name: str) -> Choice[Any]:
        """The choices of one dimension of `LayerSpec`, by its name."""
        choice: Choice[Any] = getattr(self, name)
        return choice

    @cached_property
    def shared_dimensions(self) -> tuple[str, ...]:
        """Dimensions that have one size for all layers."""
        return tuple(name for name in DIMENSIONS if not self.dimension(name).per_layer)

    @cached_property
    def layer_dimensions(self) -> tuple[str, ...]:
        """Dimensions that every layer chooses for itself."""
        return tuple(name for name in DIMENSIONS if self.dimension(name).per_layer)

    def settings(self, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        """Every combination of values of the named dimensions, in lexicographic order."""
        for values in itertools.product(*(self.dimension(name).choices for name in names)):
            yield dict(zip(names, values, strict=True))

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
        shared = [(name, len(self.dimension(name).choices)) for name in self.shared_dimensions]
        total = Fraction(0)
        for setting in self.settings(self.shared_dimensions):
            options = {LayerSpec(**setting, **own) for own in self.settings(self.layer_dimensions)}
            for depth in self.depth.choices:
                total += self.subsets(depth) * count_fillings(options, depth, shared)
        return int(len(self.hidden_size) * total)

    def contains(self, arch: Architecture) -> bool:
        """Whether the architecture is one of this space."""
        return self._stranger(arch) is None

    def _stranger(self, arch: Architecture) -> str | None:
        """What of the architecture is not of this space, in words; None where it is a member."""
        if arch.hidden_size not in self.hidden_size:
            return f"hidden_size = {arch.hidden_size} is none of {_listed(self.hidden_size)}"
        if len(arch.layers) != self.layers:
            return f"{len(arch.layers)} layers instead of {self.layers}"
        kept = tuple(i for i, _ in arch.kept)
        if not self.allows(kept):
            return f"the layers {_listed(kept)} may not be those that are kept"
        for name in DIMENSIONS:
            used = [(i, getattr(spec, name)) for i, spec in arch.kept if spec.uses(name)]
            choices = self.dimension(name).choices
            for i, value in used:
                if value not in choices:
                    return f"layer {i}: {name} = {value} is none of {_listed(choices)}"
            if name in self.shared_dimensions and len({value for _, value in used}) > 1:
                return f"{name} must be the same in every layer"
        return None

    def sample(self, rng: np.random.Generator) -> Architecture:
        """One architecture; every decision (hidden size, depth, subset, sizes) is uniform."""
        hidden_size = int(rng.choice(self.hidden_size))
        shared = {name: self.draw(name, rng) for name in self.shared_dimensions}
        kept = self.sample_subset(int(rng.choice(self.depth.choices)), rng)
        return self.build(hidden_size, {i: self.sample_layer(shared, rng) for i in kept})

    def draw(self, name: str, rng: np.random.Generator) -> Any:
        """One value of a dimension, uniform."""
        choices = self.dimension(name).choices
        return choices[rng.integers(len(choices))]

    def sample_layer(self, shared: dict[str, Any], rng: np.random.Generator) -> LayerSpec:
        """A layer with the shared values given and its own drawn uniformly."""
        return LayerSpec(**shared, **{name: self.draw(name, rng) for name in self.layer_dimensions})

    def build(self, hidden_size: int, kept: dict[int, LayerSpec]) -> Architecture:
        """The architecture that keeps these layers and skips the others."""
        return Architecture(hidden_size, tuple(kept.get(i) for i in range(self.layers)))

    def _extreme(self, pick: Callable[[tuple[Any, ...]], Any]) -> Architecture:
        spec = LayerSpec(**{name: pick(self.dimension(name).choices) for name in DIMENSIONS})
        kept = even_subset(self.layers, pick(self.depth.choices))
        return self.build(pick(self.hidden_size), dict.fromkeys(kept, spec))

    def smallest(self) -> Architecture:
        """Every choice at its first: the least sizes, the cheapest kinds; the kept layers evenly spaced."""
        return self._extreme(lambda choices: choices[0])

    def largest(self) -> Architecture:
        """Every choice at its last: the greatest sizes, the most expressive kinds."""
        return self._extreme(lambda choices: choices[-1])

    def middle(self) -> Architecture:
        """Every choice at the middle."""
        return self._extreme(lambda choices: choices[len(choices) // 2])

    @property
    def envelope(self) -> Architecture:
        """The sizes of the weights that hold every architecture: all layers at their greatest."""
        spec = LayerSpec(**{name: self.dimension(name).choices[-1] for name in DIMENSIONS})
        return Architecture(self.hidden_size[-1], (spec,) * self.layers)

    @property
    def kinds(self) -> tuple[LayerKinds, ...]:
        """The kinds that each layer's weights must serve."""
        return (LayerKinds(self.weights.choices, self.mixer.choices),) * self.layers

    def require(self, arch: Architecture) -> Architecture:
        """The architecture itself, or a `UserError` that says what of it is not of this space."""
        stranger = self._stranger(arch)
        if stranger:
            raise UserError(f"architecture {arch.id} ({arch.to_json()}) is not in the search space: {stranger}")
        return arch
