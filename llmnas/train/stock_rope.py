"""Rotary positions of a pretrained model in this project's terms."""

from __future__ import annotations

import math
from typing import Any

from llmnas.space.rotary import KINDS_OF_SCALING, LayerRope, RopeScaling


def rope_of(config: Any, head_dim: int, depth: int, positions: int) -> dict[str, Any]:
    """What `BaseModel` says of positions: theta, scaling, layers apart, the part that turns, the longest sequence.

    Args:
        config: transformers' own, which has sorted `rope_scaling`, `rope_parameters` and `rope_theta` out.
        head_dim: of the model.
        depth: its layers.
        positions: how far they go, windows considered.

    Raises:
        ValueError: another kind of scaling, or values that none can have.
    """
    rope, other = config.rope_parameters, None
    if "full_attention" in rope or "sliding_attention" in rope:  # one for each kind of layer
        rope, other = _by_kind(rope, config.layer_types)
    part = float(rope.get("partial_rotary_factor") or 1.0)
    turning = int(head_dim * part)
    if turning % 2 or not turning:
        raise ValueError(f"partial_rotary_factor = {part}: {turning} of {head_dim} channels turn, must be even")
    scaling = _scaling(rope, config.max_position_embeddings)
    if scaling is not None:
        scaling.stretched([1.0] * (turning // 2), float(rope["rope_theta"]))  # raises where it does not fit
        if scaling.kind == "longrope":  # beyond, transformers turns by other numbers
            positions = min(positions, scaling.original_max_seq or positions)
    if other is None:
        other = _without_positions(config, depth)
    return {
        "rope_theta": float(rope["rope_theta"]),
        "rope_scaling": scaling,
        "rope_part": part,
        "layer_rope": other,
        "max_seq": positions,
    }


def _by_kind(ropes: dict[str, Any], kinds: list[str]) -> tuple[dict[str, Any], LayerRope | None]:
    """Positions of the layers with full attention, and how the sliding ones turn where that is otherwise."""
    full, sliding = ropes.get("full_attention"), ropes.get("sliding_attention")
    if "full_attention" not in kinds or "sliding_attention" not in kinds or full == sliding:
        found = full if "full_attention" in kinds else sliding
        if not isinstance(found, dict):
            raise ValueError(f"rope_parameters of {sorted(set(kinds))} layers are missing")
        return found, None
    if not isinstance(full, dict) or not isinstance(sliding, dict):
        raise ValueError("rope_parameters of full_attention or sliding_attention are missing")
    if sliding["rope_type"] != "default":
        raise ValueError(f"rope_type = {sliding['rope_type']!r} of sliding layers alone is not supported")
    places = tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention")
    return full, LayerRope(places, float(sliding["rope_theta"]))


def _without_positions(config: Any, depth: int) -> LayerRope | None:
    """Layers that do not turn: named (SmolLM3), or with full attention among sliding ones (EXAONE 4, Cohere 2)."""
    turning = getattr(config, "no_rope_layers", None) or [1] * depth
    sliding = config.model_type == "exaone4" and config.sliding_window is not None
    if sliding or config.model_type == "cohere2":
        turning = [kind == "sliding_attention" for kind in config.layer_types]
    still = tuple(i for i, turns in enumerate(turning) if not turns)
    return LayerRope(still) if still else None


def _scaling(rope: dict[str, Any], positions: int) -> RopeScaling | None:
    kind = rope["rope_type"]
    if kind == "default":
        return None
    if kind not in KINDS_OF_SCALING:
        raise ValueError(f"rope_type = {kind!r} is not supported; allowed: default, {', '.join(KINDS_OF_SCALING)}")
    original = int(rope.get("original_max_position_embeddings") or positions)
    factor = rope.get("factor")
    if factor is None:
        factor = positions / original
    values: dict[str, Any] = {"kind": kind, "factor": float(factor), "original_max_seq": original}
    for name in ("low_freq_factor", "high_freq_factor"):
        if kind == "llama3":
            values[name] = float(rope[name])
    if kind == "yarn":
        values |= {"beta_fast": float(rope.get("beta_fast") or 32), "beta_slow": float(rope.get("beta_slow") or 1)}
        values |= {"truncate": bool(rope.get("truncate", True)), "magnitude": _yarn_magnitude(rope, float(factor))}
    if kind == "longrope":
        values |= {"pair_factors": tuple(map(float, rope["short_factor"]))}
        stretch = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        values |= {"magnitude": float(rope.get("attention_factor") or stretch)}
    return RopeScaling(**values)


def _yarn_magnitude(rope: dict[str, Any], factor: float) -> float:
    """transformers' attention factor: as given, else by `factor`, weighed by `mscale` and `mscale_all_dim`."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    given, top, bottom = (rope.get(name) for name in ("attention_factor", "mscale", "mscale_all_dim"))
    if given is not None:
        return float(given)
    return scale(float(top)) / scale(float(bottom)) if top and bottom else scale(1.0)
