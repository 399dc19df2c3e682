"""Exact parameter counts in closed form (no torch): what `sum(p.numel())` of the module gives."""

from __future__ import annotations

from dataclasses import dataclass

from llmnas.space import Architecture, BaseModel, LayerSpec


@dataclass(frozen=True)
class ParamCount:
    """Parameters of one architecture.

    Attributes:
        total: everything that is stored.
        active: what one token uses (equal to `total` without mixture of experts).
        embedding: the embedding, and the head where it is not tied.
    """

    total: int
    active: int
    embedding: int


def layer_matmul_params(hidden_size: int, spec: LayerSpec) -> int:
    """Weights of one block that multiply activations: q, k, v, o, gate, up, down."""
    attention = hidden_size * spec.head_dim * (2 * spec.q_heads + 2 * spec.kv_heads)
    return attention + 3 * hidden_size * spec.ffn_size


def layer_params(base: BaseModel, hidden_size: int, spec: LayerSpec) -> int:
    """All parameters of one block: matrices, biases and norm gains."""
    bias = spec.head_dim * (spec.q_heads + 2 * spec.kv_heads) if base.qkv_bias else 0
    norms = 2 * hidden_size + (2 * spec.head_dim if base.qk_norm else 0)
    return layer_matmul_params(hidden_size, spec) + bias + norms


def embedding_params(base: BaseModel, hidden_size: int) -> int:
    """Embedding and head; a tied head is not stored twice."""
    return base.vocab_size * hidden_size * (1 if base.tied else 2)


def count_params(arch: Architecture, base: BaseModel) -> ParamCount:
    """Exact number of parameters of the stand-alone network."""
    embedding = embedding_params(base, arch.hidden_size)
    layers = sum(layer_params(base, arch.hidden_size, spec) for _, spec in arch.kept)
    total = embedding + layers + arch.hidden_size
    return ParamCount(total=total, active=total, embedding=embedding)
