"""Mixtures of experts in stock classes: which grid of experts holds the layers of an architecture.

Qwen3MoE has the QK norm, layers without experts, and renormalises or not; Mixtral has no QK norm, experts in
every layer, and always renormalises. Both have one number of experts E and one top-k for all layers, and no
bias where experts are chosen: no row of a router makes an expert that is never chosen, so E cannot be padded.
What is exact is to repeat every expert m times and choose m k of m E: the m copies share the probability of
their original and are chosen together. So layers whose E / k are equal share one grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmnas.errors import UserError
from llmnas.space import Architecture, BaseModel, LayerSpec


@dataclass(frozen=True)
class StockExperts:
    """The one grid of experts of a stock model.

    Attributes:
        kind: "qwen3_moe" or "mixtral".
        experts, top_k: of every layer that has a router.
        ffn_size: of every expert.
    """

    kind: str
    experts: int
    top_k: int
    ffn_size: int

    def has_router(self, spec: LayerSpec) -> bool:
        """Mixtral has one in every layer: a dense layer stands there as equal experts."""
        return spec.experts > 1 or self.kind == "mixtral"

    def holds(self, spec: LayerSpec) -> bool:
        """Whether this layer is stored as it is."""
        return (spec.experts, spec.top_k, spec.ffn_size) == (self.experts, self.top_k, self.ffn_size)


def stock_experts(base: BaseModel, arch: Architecture) -> StockExperts | None:
    """The smallest grid that holds every layer with a router; None where no layer has one.

    Raises:
        UserError: no stock class computes these mixtures; with the reason.
    """
    routed = [(i, spec) for i, spec in arch.kept if spec.experts > 1]
    if not routed:
        return None
    _require_stock_router(base, routed)
    shared = [math.gcd(spec.experts, spec.top_k) for _, spec in routed]
    ratios = {(s.experts // g, s.top_k // g) for (_, s), g in zip(routed, shared, strict=True)}
    if len(ratios) > 1:
        given = ", ".join(f"{spec.top_k} of {spec.experts} in layer {i}" for i, spec in routed)
        raise UserError(f"export: stock classes choose the same share of the experts in every layer, here {given}")
    kind, repeat = ("qwen3_moe" if base.qk_norm else "mixtral"), math.lcm(*shared)
    experts, top_k = (part * repeat for part in ratios.pop())
    specs = [spec for _, spec in (routed if kind == "qwen3_moe" else arch.kept)]
    return StockExperts(kind, experts, top_k, max(spec.ffn_size for spec in specs))


def _require_stock_router(base: BaseModel, routed: list[tuple[int, LayerSpec]]) -> None:
    first, partial = routed[0][0], [i for i, spec in routed if spec.top_k < spec.experts]
    if base.router != "softmax":
        raise UserError(f"export: layer {first} has a {base.router} router; stock classes with experts take a softmax")
    for i, spec in routed:
        if spec.shared_experts:
            raise UserError(f"export: layer {i} has a shared expert; stock Qwen3MoE and Mixtral have none")
    if base.qk_norm:
        return
    if base.qkv_bias:
        raise UserError(
            f"export: layer {first} has experts, and the model biases on q, k and v without a QK norm; Mixtral has none"
        )
    if partial and not base.norm_top_k:
        raise UserError(
            f"export: layer {partial[0]} does not renormalise the weights of its experts (norm_top_k) and the model "
            "has no QK norm; Mixtral renormalises, Qwen3MoE has the norm"
        )
