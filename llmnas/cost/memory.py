"""Memory of inference in bytes, in closed form: weights, KV cache, activations.

Left out: the allocator's rounding and workspaces of libraries. Activations are those of
one block at a time, as an engine without gradients keeps them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from llmnas.cost.params import count_params, layer_params, layer_vector_params, router_params
from llmnas.space import Architecture, BaseModel, LayerSpec, plain_number

TERNARY_BITS = (2, 1.6)


@dataclass(frozen=True)
class Workload:
    """What costs are counted for.

    Attributes:
        batch: sequences at once.
        context: tokens in each, None for the model's longest sequence.
        bytes_per_value: 2 for fp16 and bf16, 4 for fp32; weights, cache and activations.
        ternary_bits: of a packed ternary weight: 2 as kernels read it, 1.6 as five in a byte are stored.
    """

    batch: int = 1
    context: int | None = None
    bytes_per_value: int = 2
    ternary_bits: float = 2

    def __post_init__(self) -> None:
        for name in ("batch", "context", "bytes_per_value", "ternary_bits"):
            object.__setattr__(self, name, plain_number(getattr(self, name)))
        for name in ("batch", "context", "bytes_per_value"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or value <= 0):
                raise ValueError(f"{name} must be positive, got {value}")
        if self.ternary_bits not in TERNARY_BITS:
            raise ValueError(f"ternary_bits must be 2 or 1.6, got {self.ternary_bits}")

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


def weights_a_byte(spec: LayerSpec, workload: Workload) -> Fraction:
    """How many weights of a matrix a byte holds."""
    if spec.weights == "binary":
        return Fraction(8)
    if spec.weights == "ternary":
        return Fraction(4 if workload.ternary_bits == 2 else 5)
    return Fraction(1, workload.bytes_per_value)


def layer_weight_bytes(base: BaseModel, hidden_size: int, spec: LayerSpec, workload: Workload) -> int:
    """Weights of one block: packed matrices (rounded up to whole bytes, not to groups), the rest as values."""
    total = layer_params(base, hidden_size, spec)
    plain = layer_vector_params(base, hidden_size, spec) + router_params(hidden_size, spec)
    if spec.weights == "dense":
        plain = 0
    return workload.bytes_per_value * plain + math.ceil((total - plain) / weights_a_byte(spec, workload))


def layer_kv_values(spec: LayerSpec) -> int:
    """Values that one token leaves in the cache of one layer: a key and a value for each KV head."""
    return 2 * spec.kv_heads * spec.head_dim if spec.mixer == "attention" else 0


def layer_state_values(spec: LayerSpec) -> int:
    """Values that one sequence keeps in one layer, however long it is: the state of an MLGRU."""
    return spec.q_heads * spec.head_dim if spec.mixer == "mlgru" else 0


def layer_cache_values(spec: LayerSpec, workload: Workload, base: BaseModel) -> int:
    """Values that decoding keeps in one layer for the whole workload."""
    return workload.batch * (workload.tokens(base) * layer_kv_values(spec) + layer_state_values(spec))


def layer_activation_values(hidden_size: int, spec: LayerSpec) -> int:
    """Most values a token holds inside one block: the residual, its norm, and the wider of the two halves.

    Attention holds q, k, v and its output, an MLGRU two gates, the candidate and the state; SwiGLU
    holds gate, up and their product, for each expert that a token uses and the shared ones.
    """
    mixer = {
        "attention": spec.head_dim * (2 * spec.q_heads + 2 * spec.kv_heads),
        "mlgru": 4 * spec.head_dim * spec.q_heads,
        "none": 0,
    }[spec.mixer]
    return 2 * hidden_size + max(mixer, 3 * (spec.top_k * spec.ffn_size + spec.shared_size))


def activation_bytes(base: BaseModel, hidden_size: int, spec: LayerSpec, workload: Workload) -> int:
    """Bytes of the activations where this block is the widest; the logits of one position where those are more."""
    values = workload.tokens(base) * layer_activation_values(hidden_size, spec)
    return workload.bytes_per_value * workload.batch * max(values, base.vocab_size)


def memory(arch: Architecture, base: BaseModel, workload: Workload = DEFAULT_WORKLOAD) -> Memory:
    """Bytes for reading `workload` at once and then decoding from its cache."""
    size, specs = workload.bytes_per_value, [spec for _, spec in arch.kept]
    outside = count_params(arch, base).total - sum(layer_params(base, arch.hidden_size, spec) for spec in specs)
    return Memory(
        weights=size * outside + sum(layer_weight_bytes(base, arch.hidden_size, spec, workload) for spec in specs),
        kv_cache=size * sum(layer_cache_values(spec, workload, base) for spec in specs),
        activations=max(activation_bytes(base, arch.hidden_size, spec, workload) for spec in specs),
    )
