"""What one transformer language model is: plain values, no torch.

An `Architecture` lists every layer of the supernet; a dropped layer is `None`. The same
values describe a stand-alone model (`compact`), so one type serves the supernet, the
search, retraining and export. This file travels inside exported checkpoints: standard
library only.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, fields, replace
from functools import cached_property
from numbers import Integral, Real
from typing import Any, Literal, Protocol, get_args

from llmnas.space.rotary import LayerRope, RopeScaling

RopeOrder = Literal["leading", "spread"]
Router = Literal["softmax", "sigmoid"]
Norms = Literal["pre", "post", "both"]
Activation = Literal["silu", "gelu_tanh"]
# from the cheapest to the most expressive: this order is that of a space's choices
Weights = Literal["binary", "ternary", "dense"]
Mixer = Literal["none", "mlgru", "attention"]


def plain_number(value: Any) -> Any:
    """NumPy's integers and floats as Python's; anything else as it is."""
    if type(value) in {bool, int, float}:
        return value
    return int(value) if isinstance(value, Integral) else float(value) if isinstance(value, Real) else value


@dataclass(frozen=True)
class BaseModel:
    """What all architectures of a space have in common.

    Attributes:
        vocab_size: rows of the embedding.
        tied: the head is the embedding's transpose.
        qk_norm: RMSNorm over head_dim on queries and keys, before RoPE (Qwen3).
        qk_norm_over: its RMS is over each `head`, or over all `heads` of a token together (OLMo 2).
        norms: where a block normalises: what it reads (`pre`), what it adds (`post`: OLMo 2, EXAONE 4), or `both`
            (Gemma 3, GLM-4).
        norm: `rms`, or `layer`, which subtracts the mean too (Cohere); QK norms are RMS norms.
        parallel: mixer and feed-forward read the same norm and are added at once (Cohere).
        activation: of the feed-forward's gate; `gelu_tanh` is Gemma's.
        qkv_bias: bias on the query, key and value projections (Qwen2).
        rope_theta: base of the rotary frequencies, theta^(-2i / rope_dim).
        rope_dim: the head_dim that the frequencies are spread over; None for the largest
            of the space. A sub-network keeps its supernet's.
        rope_order: which channel pairs a smaller head_dim keeps. `leading` keeps the
            highest frequencies (exports as a stock model with another theta); `spread`
            keeps pairs evenly spaced over the frequencies (exports padded).
        rope_scaling: frequencies stretched for longer texts; None for plain ones.
        rope_part: share of rope_dim that turns, the rest carries no position.
        layer_rope: layers that turn in another way, or not at all (SmolLM3); None where all turn alike.
        router: how a mixture of experts scores its experts.
        shared_gate: the shared expert is weighed by a sigmoid of its own (Qwen2-MoE).
        norm_top_k: the weights of the chosen experts are divided by their sum (with one
            expert a token its router then learns from the balance loss alone).
        max_seq: the longest sequence, in tokens.
        norm_eps: added to the mean square in every RMSNorm.
    """

    vocab_size: int
    tied: bool = True
    qk_norm: bool = False
    qk_norm_over: Literal["head", "heads"] = "head"
    norms: Norms = "pre"
    norm: Literal["rms", "layer"] = "rms"
    parallel: bool = False
    activation: Activation = "silu"
    qkv_bias: bool = False
    rope_theta: float = 10000.0
    rope_dim: int | None = None
    rope_order: RopeOrder = "leading"
    rope_scaling: RopeScaling | None = None
    rope_part: float = 1.0
    layer_rope: LayerRope | None = None
    router: Router = "softmax"
    norm_top_k: bool = False
    shared_gate: bool = False
    max_seq: int = 1024
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name, kind in (("rope_scaling", RopeScaling), ("layer_rope", LayerRope)):
            value = getattr(self, name)
            if isinstance(value, dict):  # from JSON
                object.__setattr__(self, name, kind(**value))
        for name in ("vocab_size", "max_seq", "rope_theta", "norm_eps", "rope_dim"):
            object.__setattr__(self, name, plain_number(getattr(self, name)))
        for name in ("vocab_size", "max_seq", "rope_theta", "norm_eps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.vocab_size >= 2**31:
            raise ValueError(f"vocab_size must be less than 2^31, got {self.vocab_size}")
        if self.rope_dim is not None and (self.rope_dim <= 0 or self.rope_dim % 2):
            raise ValueError(f"rope_dim must be positive and even, got {self.rope_dim}")
        if not 0 < self.rope_part <= 1:
            raise ValueError(f"rope_part must be more than 0 and at most 1, got {self.rope_part}")

    @property
    def usual(self) -> bool:
        """Whether blocks are a Llama's: RMS norms before mixer and feed-forward, one after the other, SiLU, and QK
        norm, where there is one, over each head."""
        own = (self.norms, self.norm, self.parallel, self.activation, self.qk_norm_over)
        return own == ("pre", "rms", False, "silu", "head")


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One block: a token mixer, then a SwiGLU feed-forward or a mixture of them.

    A size that the layer does not use takes the value in `NEUTRAL`, whatever was given: equal
    networks are equal values.

    Attributes:
        kv_heads, queries_per_group, head_dim: of attention; their product is the width of an MLGRU.
        ffn_size: width of the feed-forward, or of each expert.
        weights: how the matrices are read: as they are, as {-1, 0, 1} or as {-1, 1} times a scale.
        mixer: what mixes tokens; `none` leaves the feed-forward alone.
        experts: feed-forwards to choose from; 1 is a dense layer without a router.
        top_k: experts that a token uses.
        shared_experts: experts that every token uses besides (DeepSeekMoE; Dai et al. 2024, section 3.2), as one
            feed-forward so many times as wide.
    """

    kv_heads: int
    queries_per_group: int
    head_dim: int
    ffn_size: int
    weights: Weights = "dense"
    mixer: Mixer = "attention"
    experts: int = 1
    top_k: int = 1
    shared_experts: int = 0

    def __post_init__(self) -> None:
        for name in DIMENSIONS:
            if not self.uses(name):
                object.__setattr__(self, name, NEUTRAL[name])

    def uses(self, name: str) -> bool:
        """Whether this dimension makes a difference to the layer."""
        if name in _OF_THE_MIXER:
            return self.mixer != "none"
        return name not in _OF_THE_MIXTURE or self.experts != 1

    @property
    def q_heads(self) -> int:
        """Query heads: every KV head serves `queries_per_group` of them."""
        return self.kv_heads * self.queries_per_group

    @property
    def shared_size(self) -> int:
        """Width of the feed-forward that every token uses beside its experts; 0 where there is none."""
        return self.shared_experts * self.ffn_size


_OF_THE_MIXER = ("kv_heads", "queries_per_group", "head_dim")
_OF_THE_MIXTURE = ("top_k", "shared_experts")
NEUTRAL = {"kv_heads": 1, "queries_per_group": 1, "head_dim": 2, "top_k": 1, "shared_experts": 0}
DIMENSIONS: tuple[str, ...] = tuple(field.name for field in fields(LayerSpec))
KINDS: dict[str, tuple[str, ...]] = {"weights": get_args(Weights), "mixer": get_args(Mixer)}
SIZES: tuple[str, ...] = tuple(name for name in DIMENSIONS if name not in KINDS)
_OPTIONAL = {field.name: field.default for field in fields(LayerSpec) if isinstance(field.default, int | str)}


def _check_layer(number: int, spec: LayerSpec) -> None:
    for name, allowed in KINDS.items():
        if getattr(spec, name) not in allowed:
            raise ValueError(f"layer {number}: {name} must be one of {', '.join(allowed)}, got {getattr(spec, name)!r}")
    if type(spec.shared_experts) is not int or spec.shared_experts < 0:
        raise ValueError(f"layer {number}: shared_experts must be 0 or more, got {spec.shared_experts!r}")
    if spec.top_k > spec.experts:
        raise ValueError(f"layer {number}: top_k = {spec.top_k} is more than its {spec.experts} experts")


@dataclass(frozen=True)
class Architecture:
    """One network: the width of the residual stream and what stands at every layer."""

    hidden_size: int
    layers: tuple[LayerSpec | None, ...]

    def __post_init__(self) -> None:
        if not all(type(size) is int and size > 0 for size in self._sizes()):
            self._use_plain_numbers()
        if self.depth == 0:
            raise ValueError("an architecture must keep at least one layer")
        for i, spec in self.kept:
            _check_layer(i, spec)

    def _sizes(self) -> list[Any]:
        return [self.hidden_size, *(getattr(spec, n) for _, spec in self.kept for n in SIZES if n != "shared_experts")]

    def _use_plain_numbers(self) -> None:
        """Sizes that NumPy counted become Python's; what is no positive integer even then is an error."""
        plain = [spec and replace(spec, **{n: plain_number(getattr(spec, n)) for n in SIZES}) for spec in self.layers]
        object.__setattr__(self, "hidden_size", plain_number(self.hidden_size))
        object.__setattr__(self, "layers", tuple(plain))
        del self.__dict__["kept"]  # of the layers before
        if not all(type(size) is int and size > 0 for size in self._sizes()):
            raise ValueError(f"every size of an architecture must be a positive integer, got {self._sizes()}")

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.hidden_size, self.layers))  # searches look networks up again and again

    def __reduce__(self) -> tuple[type[Architecture], tuple[Any, ...]]:
        return Architecture, (self.hidden_size, self.layers)  # the hash of text is another in every process

    @cached_property
    def kept(self) -> tuple[tuple[int, LayerSpec], ...]:
        """(index in the supernet, sizes) of the layers that are there."""
        return tuple((i, spec) for i, spec in enumerate(self.layers) if spec is not None)

    @property
    def depth(self) -> int:
        """Number of layers that are there."""
        return len(self.layers) - self.layers.count(None)

    def compact(self) -> Architecture:
        """The stand-alone network: the same layers without the skips."""
        return Architecture(self.hidden_size, tuple(spec for _, spec in self.kept))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in JSON; what has its default is left out, so that ids outlive new dimensions."""
        layers = [spec and {name: getattr(spec, name) for name in DIMENSIONS} for spec in self.layers]
        kept = [
            layer and {name: value for name, value in layer.items() if value != _OPTIONAL.get(name)} for layer in layers
        ]
        return {"hidden_size": self.hidden_size, "layers": kept}

    def to_json(self) -> str:
        """Canonical JSON: equal architectures give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_dict(cls, value: Any) -> Architecture:
        """Inverse of `to_dict`; raises ValueError on anything else."""
        try:
            if set(value) != {"hidden_size", "layers"}:
                raise ValueError(f"not an architecture: needs hidden_size and layers, got {sorted(value)}")
            layers = tuple(None if layer is None else LayerSpec(**layer) for layer in value["layers"])
            return cls(value["hidden_size"], layers)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an architecture: {error}") from None

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """Inverse of `to_json`; raises ValueError on anything else."""
        try:
            return cls.from_dict(json.loads(text))
        except RecursionError:
            raise ValueError("not an architecture: nested too deep") from None

    @property
    def id(self) -> str:
        """Ten hex digits, the same on every machine and in every version of Python."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:10]


@dataclass(frozen=True)
class LayerKinds:
    """Which kinds the weights of one layer must serve."""

    weights: tuple[Weights, ...] = ("dense",)
    mixers: tuple[Mixer, ...] = ("attention",)


class Shape(Protocol):
    """What a `Transformer` is built from: a search space, or a `FixedShape`."""

    @property
    def base(self) -> BaseModel:
        """What all architectures of this shape have in common."""
        ...

    @property
    def envelope(self) -> Architecture:
        """The sizes of the weights: every layer at its greatest."""
        ...

    @property
    def kinds(self) -> tuple[LayerKinds, ...]:
        """The kinds that each layer of the envelope must serve."""
        ...


def require_fit(shape: Shape, arch: Architecture) -> None:
    """Raise ValueError where the weights of `shape` cannot serve `arch`.

    A slice beyond the end of a tensor is silently shorter: another network would run than the one asked for.
    """
    largest = shape.envelope
    if len(arch.layers) != len(largest.layers):
        raise ValueError(f"architecture of {len(arch.layers)} layers, the weights have {len(largest.layers)}")
    if arch.hidden_size > largest.hidden_size:
        raise ValueError(f"hidden_size = {arch.hidden_size} is more than the weights' {largest.hidden_size}")
    for i, spec in arch.kept:
        most, kinds = largest.layers[i], shape.kinds[i]
        if most is None or spec.weights not in kinds.weights or spec.mixer not in kinds.mixers:
            raise ValueError(f"layer {i}: no weights for {spec.weights} weights with mixer {spec.mixer}")
        for name in SIZES:
            if spec.uses(name) and getattr(spec, name) > getattr(most, name):
                raise ValueError(f"layer {i}: {name} = {getattr(spec, name)} is more than {getattr(most, name)}")


@dataclass(frozen=True)
class FixedShape:
    """The shape of one stand-alone network: every size is there once."""

    base: BaseModel
    envelope: Architecture

    @property
    def kinds(self) -> tuple[LayerKinds, ...]:
        """Each layer serves its own kind."""
        return tuple(LayerKinds((spec.weights,), (spec.mixer,)) for _, spec in self.envelope.kept)
