"""What one transformer language model is: plain values, no torch.

An `Architecture` lists every layer of the supernet; a dropped layer is `None`. The same
values describe a stand-alone model (`compact`), so one type serves the supernet, the
search, retraining and export. This file travels inside exported checkpoints: standard
library only.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Protocol

RopeOrder = Literal["leading", "spread"]


@dataclass(frozen=True)
class BaseModel:
    """What all architectures of a space have in common.

    Attributes:
        vocab_size: rows of the embedding.
        tied: the head is the embedding's transpose.
        qk_norm: RMSNorm over head_dim on queries and keys, before RoPE (Qwen3).
        qkv_bias: bias on the query, key and value projections (Qwen2).
        rope_theta: base of the rotary frequencies, theta^(-2i / rope_dim).
        rope_dim: the head_dim that the frequencies are spread over; None for the largest
            of the space. A sub-network keeps its supernet's.
        rope_order: which channel pairs a smaller head_dim keeps. `leading` keeps the
            highest frequencies (exports as a stock model with another theta); `spread`
            keeps pairs evenly spaced over the frequencies (exports padded).
        max_seq: the longest sequence, in tokens.
        norm_eps: added to the mean square in every RMSNorm.
    """

    vocab_size: int
    tied: bool = True
    qk_norm: bool = False
    qkv_bias: bool = False
    rope_theta: float = 10000.0
    rope_dim: int | None = None
    rope_order: RopeOrder = "leading"
    max_seq: int = 1024
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("vocab_size", "max_seq", "rope_theta", "norm_eps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.rope_dim is not None and (self.rope_dim <= 0 or self.rope_dim % 2):
            raise ValueError(f"rope_dim must be positive and even, got {self.rope_dim}")


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """Sizes of one transformer block: GQA attention, then a SwiGLU feed-forward."""

    kv_heads: int
    queries_per_group: int
    head_dim: int
    ffn_size: int

    @property
    def q_heads(self) -> int:
        """Query heads: every KV head serves `queries_per_group` of them."""
        return self.kv_heads * self.queries_per_group


DIMENSIONS: tuple[str, ...] = tuple(field.name for field in fields(LayerSpec))


@dataclass(frozen=True)
class Architecture:
    """One network: the width of the residual stream and what stands at every layer."""

    hidden_size: int
    layers: tuple[LayerSpec | None, ...]

    def __post_init__(self) -> None:
        sizes = [self.hidden_size, *(getattr(spec, name) for _, spec in self.kept for name in DIMENSIONS)]
        if not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError(f"every size of an architecture must be a positive integer, got {sizes}")
        if self.depth == 0:
            raise ValueError("an architecture must keep at least one layer")

    @property
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
        """Plain values, as stored in JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """Canonical JSON: equal architectures give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_dict(cls, value: Any) -> Architecture:
        """Inverse of `to_dict`; raises ValueError on anything else."""
        try:
            layers = tuple(None if layer is None else LayerSpec(**layer) for layer in value["layers"])
            return cls(value["hidden_size"], layers)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an architecture: {error}") from None

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """Inverse of `to_json`; raises ValueError on anything else."""
        return cls.from_dict(json.loads(text))

    @property
    def id(self) -> str:
        """Ten hex digits, the same on every machine and in every version of Python."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:10]


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


@dataclass(frozen=True)
class FixedShape:
    """The shape of one stand-alone network: every size is there once."""

    base: BaseModel
    envelope: Architecture
