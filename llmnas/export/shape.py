"""Which stock model holds an architecture: its class, its one size for all layers, its rotary base.

Stock classes know one set of sizes for all layers. Everything here is exact: nothing is
approximated, only zeros (and copies of KV heads) are added, and as few as possible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmnas.errors import UserError
from llmnas.nn.rope import pair_order
from llmnas.space import Architecture, BaseModel, LayerSpec


@dataclass(frozen=True)
class StockShape:
    """Sizes of a stock model that computes what an architecture computes.

    Attributes:
        spec: the sizes that every layer has.
        rope_theta: base of its rotary frequencies, rope_theta^(-2 j / spec.head_dim) for pair j.
        rope_pairs: at which j each stored pair of channels goes; a layer of n pairs uses the leading n.
        exact: no layer is padded.
    """

    spec: LayerSpec
    rope_theta: float
    rope_pairs: tuple[int, ...]
    exact: bool

    @property
    def tier(self) -> int:
        """1: exactly the architecture's own sizes; 2: padded."""
        return 1 if self.exact else 2


def has_stock_kinds(arch: Architecture) -> bool:
    """Whether every layer is one that a stock class computes: dense attention without experts."""
    return all((spec.weights, spec.mixer, spec.experts) == ("dense", "attention", 1) for _, spec in arch.kept)


def require_stock_kinds(arch: Architecture) -> None:
    """Refuse layers that no stock class computes.

    Raises:
        UserError: low-bit weights, an MLGRU, no mixer, or experts; with the layer.
    """
    for i, spec in arch.kept:
        if (spec.weights, spec.mixer, spec.experts) != ("dense", "attention", 1):
            raise UserError(
                f"export: layer {i} has {spec.weights} weights, mixer {spec.mixer} and {spec.experts} experts; stock "
                "checkpoints hold dense attention layers without experts"
            )


def stock_shape(base: BaseModel, arch: Architecture) -> StockShape:
    """The cheapest uniform sizes that hold every layer of `arch`."""
    require_stock_kinds(arch)
    specs = [spec for _, spec in arch.kept]
    kv_heads, queries = _head_grid(specs)
    widest = max(spec.head_dim for spec in specs)
    rope_dim = base.rope_dim or widest
    # Pair i turns by theta^(-2 i / rope_dim). When all i in use are multiples of a stride, i = stride j, they
    # are the frequencies of a smaller stock head with theta' = theta^(stride head_dim / rope_dim): leading
    # pairs (stride 1) and every second, fourth, ... pair need no padding at all.
    used = pair_order(rope_dim // 2, base.rope_order)[: widest // 2]
    stride = math.gcd(*used) or 1
    pairs = tuple(i // stride for i in used)
    head_dim = 2 * (max(pairs) + 1)
    spec = LayerSpec(kv_heads, queries, head_dim, max(spec.ffn_size for spec in specs))
    theta = base.rope_theta ** (stride * head_dim / rope_dim)
    return StockShape(spec, theta, pairs, exact=set(specs) == {spec})


def copies(spec: LayerSpec, queries_per_group: int) -> int:
    """How often each KV head must stand so that no copy serves more than `queries_per_group` queries."""
    return math.ceil(spec.queries_per_group / queries_per_group)


def _head_grid(specs: Sequence[LayerSpec]) -> tuple[int, int]:
    """(KV heads, queries a group) with the fewest parameters, then the fewest KV heads.

    A group too large for the grid is split over copies of its KV head: 1 x 8 and 8 x 1 heads fit
    into 8 x 1, where padding alone would need 8 x 8. Attention parameters go as kv (queries + 1).
    """
    grids = []
    for queries in range(1, max(spec.queries_per_group for spec in specs) + 1):
        kv_heads = max(spec.kv_heads * copies(spec, queries) for spec in specs)
        grids.append((kv_heads * (queries + 1), kv_heads, queries))
    _, kv_heads, queries = min(grids)
    return kv_heads, queries


def stock_class(base: BaseModel, arch: Architecture) -> str:
    """The transformers model type ("llama", "mistral", "seed_oss" or "qwen3") that computes `arch`.

    Llama wherever it can, since every engine reads it; it insists on hidden_size % q_heads == 0.
    Mistral is the same mathematics without that and without biases, Seed-OSS with them. Qwen3 has the
    QK norm. (Qwen2 has our biases too, but transformers 5 gives that model type Qwen's own
    pre-tokenizer whatever `tokenizer.json` says, and engines ignore its head_dim.)
    """
    if base.qk_norm:
        return "qwen3"
    if arch.hidden_size % stock_shape(base, arch).spec.q_heads == 0:
        return "llama"
    return "seed_oss" if base.qkv_bias else "mistral"
