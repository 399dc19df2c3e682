"""Memory of inference in bytes, in closed form: weights, KV cache, activations.

Left out: the allocator's rounding and workspaces of libraries. Activations are those of
one block at a time, as an engine without gradients keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmnas.cost.params import count_params
from llmnas.space import Architecture, BaseModel, LayerSpec


@dataclass(frozen=True)
class Workload:
    """What costs are counted for.

    Attributes:
        batch: sequences at once.
        context: tokens in each, None for the model's longest sequence.
        bytes_per_value: 2 for fp16 and bf16, 4 for fp32; weights, cache and activations.
    """

    batch: int = 1
    context: int | None = None
    bytes_per_value: int = 2

    def tokens(self, base: BaseModel) -> int:
        """Tokens of one sequence."""
        return self.context or base.max_seq


DEFAULT_WORKLOAD = Workload()


@dataclass(frozen=True)
class Memory:
    """Bytes of one architecture under a workload."""

    weights: int
    kv_cache: int
    activations: int

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return self.weights + self.kv_cache + self.activations


def layer_kv_values(spec: LayerSpec) -> int:
    """Values that one token leaves in the cache of one layer: a key and a value for each KV head."""
    return 2 * spec.kv_heads * spec.head_dim


def layer_activation_values(hidden_size: int, spec: LayerSpec) -> int:
    """Most values a token holds inside one block: the residual, its norm, and the wider of the two halves.

    Attention holds q, k, v and its output; SwiGLU holds gate, up and their product.
    """
    attention = spec.head_dim * (2 * spec.q_heads + 2 * spec.kv_heads)
    return 2 * hidden_size + max(attention, 3 * spec.ffn_size)


def memory(arch: Architecture, base: BaseModel, workload: Workload = DEFAULT_WORKLOAD) -> Memory:
    """Bytes for reading `workload` at once and then decoding from its cache."""
    tokens = workload.batch * workload.tokens(base)
    widest = max(layer_activation_values(arch.hidden_size, spec) for _, spec in arch.kept)
    logits = workload.batch * base.vocab_size
    return Memory(
        weights=workload.bytes_per_value * count_params(arch, base).total,
        kv_cache=workload.bytes_per_value * tokens * sum(layer_kv_values(spec) for _, spec in arch.kept),
        activations=workload.bytes_per_value * max(tokens * widest, logits),
    )
