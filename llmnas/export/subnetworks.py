"""The sub-networks of an elastic checkpoint and how a budget picks one; travels inside the checkpoint, no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmnas.space.architecture import Architecture

Limits = Mapping[str, float]
LIMITS = ("latency_ms", "params", "memory_bytes")
"""What a budget may bound: milliseconds a generated token on this device, parameters, bytes of weights and cache."""


@dataclass(frozen=True)
class Subnetwork:
    """One row of the table.

    Attributes:
        arch: with an entry for every layer of the weights.
        metrics: `val_loss` (nats/token), `params`, `memory_bytes`, and what else was measured.
    """

    arch: Architecture
    metrics: Mapping[str, float]

    @property
    def id(self) -> str:
        """Of the architecture."""
        return self.arch.id

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"id": self.id, "metrics": dict(self.metrics), "architecture": self.arch.to_dict()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Subnetwork:
        """Inverse of `to_dict`."""
        return cls(Architecture.from_dict(value["architecture"]), dict(value["metrics"]))


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds a token of every sub-network on one device.

    Attributes:
        fingerprint: what the numbers depend on besides the network, see `stopwatch.fingerprint`.
        context: tokens of the text, the new one included.
        ms: by the id of a sub-network.
    """

    fingerprint: Mapping[str, Any]
    context: int
    ms: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"fingerprint": dict(self.fingerprint), "context": self.context, "ms": dict(self.ms)}


def latencies(tables: Sequence[Mapping[str, Any]], fingerprint: Mapping[str, Any]) -> Mapping[str, float]:
    """Milliseconds by sub-network on the device of that fingerprint, from the table written last.

    Raises:
        ValueError: none was measured there; says what differs and what to do.
    """
    for table in reversed(tables):
        if dict(table["fingerprint"]) == dict(fingerprint):
            found: Mapping[str, float] = table["ms"]
            return found
    known = "; ".join(_named(table["fingerprint"]) for table in tables) or "none"
    raise ValueError(
        f"budget: latency_ms: no latencies of this device ({_named(fingerprint)}); known: {known}; measure it first: "
        "model.measure_latency()"
    )


def _named(fingerprint: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in fingerprint.items())


def pick(table: Sequence[Subnetwork], limits: Limits, ms: Mapping[str, float] | None = None) -> Subnetwork:
    """The sub-network of least validation loss within the limits; of equal ones that of fewest parameters.

    Args:
        table: all of them.
        limits: upper bounds, inclusive, by names in `LIMITS`.
        ms: milliseconds by id, where `latency_ms` is limited.

    Raises:
        ValueError: an unknown limit, one that is no positive number, or one that no sub-network keeps.
    """
    check_limits(limits)
    for name, most in limits.items():
        least = min(cost(one, name, ms) for one in table)
        if least > most:
            raise ValueError(f"budget: {name} = {most:g} is below the smallest sub-network's {least:.6g}")
    fit = [one for one in table if all(cost(one, name, ms) <= most for name, most in limits.items())]
    if not fit:
        raise ValueError(f"budget: no sub-network keeps {' and '.join(limits)} together; loosen one")
    return min(fit, key=lambda one: (one.metrics["val_loss"], one.metrics["params"]))


def check_limits(limits: Limits) -> None:
    """Refuse no limit, an unknown one, or one that is no positive number; ValueError with what is allowed."""
    if not limits:
        raise ValueError(f"budget: none given; allowed: {', '.join(LIMITS)}")
    for name, most in limits.items():
        if name not in LIMITS:
            raise ValueError(f"budget: {name} does not exist; allowed: {', '.join(LIMITS)}")
        if isinstance(most, bool) or not isinstance(most, int | float) or not 0 < most < math.inf:
            raise ValueError(f"budget: {name} = {most!r} must be a positive number")


def cost(one: Subnetwork, name: str, ms: Mapping[str, float] | None) -> float:
    """What a limit bounds."""
    if name == "latency_ms":
        return (ms or {})[one.id]
    return one.metrics[name]
