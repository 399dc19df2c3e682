"""How rotary positions differ from the plain ones: stretched frequencies, other layers, a part of the channels.

This file travels inside exported checkpoints: standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

ScalingKind = Literal["linear", "dynamic", "llama3", "yarn", "longrope"]
KINDS_OF_SCALING: tuple[str, ...] = get_args(ScalingKind)
BY_FREQUENCY = ("linear", "dynamic", "llama3")
"""What happens to a pair follows from its frequency alone, so a stock model of another head size can have the same."""


@dataclass(frozen=True)
class RopeScaling:
    """Rotary frequencies stretched so that a model reads longer texts than it was first trained on.

    Attributes:
        kind: `linear` divides every frequency by `factor` (Chen et al. 2023); `dynamic` leaves them as they are up to
            `max_seq` (transformers changes them beyond); `llama3` divides the low ones (Llama 3.1); `yarn` blends by
            turns (Peng et al. 2023, section 3.2); `longrope` divides each by its own number (Ding et al. 2024).
        factor: how much longer texts become.
        original_max_seq: tokens of the first training.
        low_freq_factor, high_freq_factor: of `llama3`; between `original_max_seq` divided by them, wavelengths blend.
        beta_fast, beta_slow: of `yarn`, turns within `original_max_seq` between which frequencies blend.
        truncate: of `yarn`, whether the ends of the blend are whole pairs.
        magnitude: what rotated queries and keys are multiplied by.
        pair_factors: of `longrope`, one for each rotated pair.
    """

    kind: ScalingKind
    factor: float = 1.0
    original_max_seq: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    magnitude: float = 1.0
    pair_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "pair_factors", tuple(self.pair_factors))  # a list from JSON
        if self.kind not in KINDS_OF_SCALING:
            raise ValueError(f"rope_scaling.kind must be one of {', '.join(KINDS_OF_SCALING)}, got {self.kind!r}")
        for name in ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "magnitude"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"rope_scaling.{name} must be positive, got {value!r}")
        if self.kind in {"llama3", "yarn"} and not self.original_max_seq:
            raise ValueError(f"rope_scaling of kind {self.kind} needs original_max_seq")
        if self.kind == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError("rope_scaling.low_freq_factor must be less than high_freq_factor")
        if (self.kind == "longrope") != bool(self.pair_factors):
            raise ValueError("rope_scaling.pair_factors belongs to kind longrope, which needs it")
        if not all(0 < factor < math.inf for factor in self.pair_factors):
            raise ValueError("rope_scaling.pair_factors must be positive")

    def stretched(self, frequencies: Sequence[float], theta: float) -> list[float]:
        """Radians a position after scaling.

        Args:
            frequencies: theta^(-2i / dim) for every rotated pair i, from high to low.
            theta: their base.
        """
        if self.kind == "linear":
            return [f / self.factor for f in frequencies]
        if self.kind == "llama3":
            return [self._llama3(f) for f in frequencies]
        if self.kind == "yarn":
            low, high = self._blend(len(frequencies), theta)
            shares = [min(1.0, max(0.0, (i - low) / (high - low))) for i in range(len(frequencies))]
            return [f * (1 - s) + f / self.factor * s for f, s in zip(frequencies, shares, strict=True)]
        if self.kind == "longrope":
            if len(self.pair_factors) != len(frequencies):
                raise ValueError(f"rope_scaling.pair_factors has {len(self.pair_factors)} of {len(frequencies)} pairs")
            return [f / factor for f, factor in zip(frequencies, self.pair_factors, strict=True)]
        return list(frequencies)

    def _llama3(self, frequency: float) -> float:
        turns = (self.original_max_seq or 1) * frequency / (2 * math.pi)
        if turns > self.high_freq_factor:
            return frequency
        if turns < self.low_freq_factor:
            return frequency / self.factor
        smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return (1 - smooth) * frequency / self.factor + smooth * frequency

    def _blend(self, pairs: int, theta: float) -> tuple[float, float]:
        """The first and the last pair of YaRN's blend (equations 17 and 18 of the paper)."""
        ends = [
            2 * pairs * math.log((self.original_max_seq or 1) / (turns * 2 * math.pi)) / (2 * math.log(theta))
            for turns in (self.beta_fast, self.beta_slow)
        ]
        if self.truncate:
            ends = [math.floor(ends[0]), math.ceil(ends[1])]
        low, high = max(ends[0], 0), min(ends[1], 2 * pairs - 1)
        return low, high + 0.001 if low == high else high


@dataclass(frozen=True)
class LayerRope:
    """Layers that turn in another way than `BaseModel.rope_theta` says, never with its scaling.

    Attributes:
        layers: their places, those of the supernet.
        theta: base of their frequencies; None for layers without positions (NoPE, Kazemnejad et al. 2023).
    """

    layers: tuple[int, ...]
    theta: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if any(type(i) is not int or i < 0 for i in self.layers):
            raise ValueError(f"layer_rope.layers must be places of layers, got {list(self.layers)}")
        if self.theta is not None and not 0 < self.theta < math.inf:
            raise ValueError(f"layer_rope.theta must be positive, got {self.theta}")

    def among(self, kept: Sequence[int]) -> LayerRope | None:
        """The same of a stand-alone network with the layers at these places; None where it has none of them."""
        layers = tuple(new for new, old in enumerate(kept) if old in self.layers)
        return LayerRope(layers, self.theta) if layers else None
