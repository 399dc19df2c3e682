"""Which stock model holds an architecture: its class, its one size for all layers, its rotary base.

Stock classes know one set of sizes for all layers. Everything here is exact: nothing is approximated, only
zeros (and copies of KV heads and of experts) are added, and as few as possible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmnas.errors import UserError
from llmnas.export.experts import StockExperts, stock_experts
from llmnas.nn.rope import pair_order
from llmnas.space import Architecture, BaseModel, LayerSpec
from llmnas.space.rotary import BY_FREQUENCY

_HEADS = ("kv_heads", "queries_per_group", "head_dim")


@dataclass(frozen=True)
class StockShape:
    """Sizes of a stock model that computes what an architecture computes.

    Attributes:
        spec: the heads that every layer has, and the FFN size of every layer without a router.
        experts: of every layer with a router; None where no layer has one.
        rope_theta: base of its rotary frequencies, rope_theta^(-2 j / spec.head_dim) for pair j.
        rope_pairs: at which j each stored pair of channels goes; a layer of n pairs uses the leading n.
        exact: no layer is padded.
    """

    spec: LayerSpec
    experts: StockExperts | None
    rope_theta: float
    rope_pairs: tuple[int, ...]
    exact: bool

    @property
    def tier(self) -> int:
        """1: exactly the architecture's own sizes; 2: padded."""
        return 1 if self.exact else 2


def why_not_stock(base: BaseModel, arch: Architecture) -> str | None:
    """Why no stock class computes `arch`; None where one does."""
    try:
        stock_shape(base, arch)
    except UserError as error:
        return str(error)
    return None


def stock_shape(base: BaseModel, arch: Architecture) -> StockShape:
    """The cheapest uniform sizes that hold every layer of `arch`.

    A layer without a mixer stands as attention whose every projection is zero.

    Raises:
        UserError: low-bit weights, an MLGRU, or mixtures that no stock class has; with the layer.
    """
    for i, spec in arch.kept:
        if spec.weights != "dense" or spec.mixer == "mlgru":
            raise UserError(
                f"export: layer {i} has {spec.weights} weights and mixer {spec.mixer}; stock classes in float32 hold "
                "dense weights with attention or no mixer"
            )
    if not base.usual:
        raise UserError(
            "export: stock classes here have RMS norms before their parts, SiLU, and QK norm over each head; this one "
            f"has {base.norm} norms ({base.norms}), {base.activation}, QK norm over {base.qk_norm_over}"
        )
    if base.rope_part != 1 or (base.layer_rope and base.layer_rope.theta is not None):
        raise UserError("export: stock classes turn all channels, and all layers that turn alike")
    if base.layer_rope and (base.qk_norm or any(spec.experts > 1 for _, spec in arch.kept)):
        raise UserError("export: the stock class with layers without positions has neither QK norm nor experts")
    experts = stock_experts(base, arch)
    specs = [spec for _, spec in arch.kept]
    kv_heads, queries = _head_grid(specs)
    widest = max(spec.head_dim for spec in specs)
    rope_dim = base.rope_dim or widest
    # Pair i turns by theta^(-2 i / rope_dim). When all i in use are multiples of a stride, i = stride j, they
    # are the frequencies of a smaller stock head with theta' = theta^(stride head_dim / rope_dim): leading
    # pairs (stride 1) and every second, fourth, ... pair need no padding at all.
    used = pair_order(rope_dim // 2, base.rope_order)[: widest // 2]
    whole = base.rope_scaling is not None and base.rope_scaling.kind not in BY_FREQUENCY
    if whole:  # what happens to a pair follows from its place among all of them, so they all stay
        used = pair_order(rope_dim // 2, base.rope_order)
    stride = math.gcd(*used) or 1
    pairs = tuple(i // stride for i in used)
    head_dim = 2 * (max(pairs) + 1)
    ffn_size = max((spec.ffn_size for spec in specs if not (experts and experts.has_router(spec))), default=1)
    spec = LayerSpec(kv_heads, queries, head_dim, ffn_size)
    theta = base.rope_theta ** (stride * head_dim / rope_dim)
    exact = all(_as_it_is(own, spec, experts) for own in specs)
    return StockShape(spec, experts, theta, pairs, exact)


def _as_it_is(own: LayerSpec, stock: LayerSpec, experts: StockExperts | None) -> bool:
    """Whether a layer is stored without padding."""
    if own.mixer == "none" or any(getattr(own, name) != getattr(stock, name) for name in _HEADS):
        return False
    if experts and experts.has_router(own):
        return experts.holds(own)
    return own.ffn_size == stock.ffn_size


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
    """The transformers model type (a key of `CLASS_NAMES`) that computes `arch`.

    Llama wherever it can, since every engine reads it; it insists on hidden_size % q_heads == 0.
    Mistral is the same mathematics without that and without biases, Seed-OSS with them. Qwen3 has the
    QK norm, SmolLM3 has layers without positions. (Qwen2 has our biases too, but transformers 5 gives
    that model type Qwen's own pre-tokenizer whatever `tokenizer.json` says, and engines ignore its head_dim.)
    """
    shape = stock_shape(base, arch)
    if base.layer_rope:
        return "smollm3"
    if shape.experts:
        return shape.experts.kind
    if base.qk_norm:
        return "qwen3"
    if arch.hidden_size % shape.spec.q_heads == 0:
        return "llama"
    return "seed_oss" if base.qkv_bias else "mistral"
