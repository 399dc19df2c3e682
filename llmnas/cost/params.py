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


def mixer_matmul_params(hidden_size: int, spec: LayerSpec) -> int:
    """Weights of the token mixer that multiply activations.

    Attention: q, k, v, o. MLGRU: forget gate, candidate, output gate and output, as wide as the query heads.
    """
    if spec.mixer == "none":
        return 0
    heads = 4 * spec.q_heads if spec.mixer == "mlgru" else 2 * spec.q_heads + 2 * spec.kv_heads
    return hidden_size * spec.head_dim * heads


def expert_matmul_params(hidden_size: int, spec: LayerSpec) -> int:
    """Weights of one feed-forward: gate, up, down."""
    return 3 * hidden_size * spec.ffn_size


def router_params(hidden_size: int, spec: LayerSpec) -> int:
    """Weights that choose among experts; none where there is one."""
    return hidden_size * spec.experts if spec.experts > 1 else 0


def layer_matmul_params(hidden_size: int, spec: LayerSpec) -> int:
    """Weights of one block that multiply the activations of a token: of its experts the chosen and the shared ones."""
    used = spec.top_k + spec.shared_experts
    feed_forward = used * expert_matmul_params(hidden_size, spec) + router_params(hidden_size, spec)
    return mixer_matmul_params(hidden_size, spec) + feed_forward


def idle_params(hidden_size: int, spec: LayerSpec) -> int:
    """Weights of the experts that a token does not use."""
    return (spec.experts - spec.top_k) * expert_matmul_params(hidden_size, spec)


def layer_vector_params(base: BaseModel, hidden_size: int, spec: LayerSpec) -> int:
    """Biases and norm gains of one block.

    A block whose weights are not dense normalises the input of its output and down projections too; an
    MLGRU learns a lower bound for every forget gate. The gate of a shared expert is one vector.
    """
    attention, width = spec.mixer == "attention", spec.head_dim * spec.q_heads
    bias = spec.head_dim * (spec.q_heads + 2 * spec.kv_heads) if base.qkv_bias and attention else 0
    norms = hidden_size * (1 if spec.mixer == "none" or base.parallel else 2) * (2 if base.norms == "both" else 1)
    if base.qk_norm and attention:
        norms += spec.head_dim * (2 if base.qk_norm_over == "head" else spec.q_heads + spec.kv_heads)
    inner = 0 if spec.weights == "dense" else spec.ffn_size + spec.shared_size + (0 if spec.mixer == "none" else width)
    norms += hidden_size if base.shared_gate and spec.shared_experts else 0
    return bias + norms + inner + (width if spec.mixer == "mlgru" else 0)


def layer_params(base: BaseModel, hidden_size: int, spec: LayerSpec) -> int:
    """All parameters of one block: matrices, biases and norm gains."""
    matrices = layer_matmul_params(hidden_size, spec) + idle_params(hidden_size, spec)
    return matrices + layer_vector_params(base, hidden_size, spec)


def embedding_params(base: BaseModel, hidden_size: int) -> int:
    """Embedding and head; a tied head is not stored twice."""
    return base.vocab_size * hidden_size * (1 if base.tied else 2)


def count_params(arch: Architecture, base: BaseModel) -> ParamCount:
    """Exact number of parameters of the stand-alone network."""
    embedding = embedding_params(base, arch.hidden_size)
    layers = sum(layer_params(base, arch.hidden_size, spec) for _, spec in arch.kept)
    total = embedding + layers + arch.hidden_size
    idle = sum(idle_params(arch.hidden_size, spec) for _, spec in arch.kept)
    return ParamCount(total=total, active=total - idle, embedding=embedding)
