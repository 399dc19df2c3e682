"""Limits on an architecture, and the costs they are limits on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from numbers import Real

from llmnas.cost.flops import prefill_flops_per_token
from llmnas.cost.memory import DEFAULT_WORKLOAD, Workload, memory
from llmnas.cost.params import count_params
from llmnas.space import Architecture, BaseModel, plain_number

COSTS = ("params", "active_params", "flops_per_token", "memory_bytes")


def costs(
    arch: Architecture, base: BaseModel, workload: Workload = DEFAULT_WORKLOAD, names: Iterable[str] = COSTS
) -> dict[str, float]:
    """Closed-form costs, those of `names`, by metric name; FLOPs are those of prefill at the workload's context."""
    forms: dict[str, Callable[[], float]] = {
        "params": lambda: count_params(arch, base).total,
        "active_params": lambda: count_params(arch, base).active,
        "flops_per_token": lambda: prefill_flops_per_token(arch, base, workload.tokens(base)),
        "memory_bytes": lambda: memory(arch, base, workload).total,
    }
    return {name: forms[name]() for name in names}


@dataclass(frozen=True)
class Budget:
    """Inclusive limits; None is no limit. FLOPs and memory are those of `workload`."""

    max_params: int | None = None
    min_params: int | None = None
    max_active_params: int | None = None
    min_active_params: int | None = None
    max_flops_per_token: float | None = None
    min_flops_per_token: float | None = None
    max_memory_bytes: int | None = None
    min_memory_bytes: int | None = None
    workload: Workload = DEFAULT_WORKLOAD

    def __post_init__(self) -> None:
        for field in fields(self):
            limit = getattr(self, field.name)
            if field.name == "workload" or limit is None:
                continue
            limit = plain_number(limit)
            number = isinstance(limit, Real) and not isinstance(limit, bool)
            if not number or not 0 < limit <= sys.float_info.max:  # a greater integer is no float either
                raise ValueError(f"{field.name} must be a positive, finite number, got {limit!r}")
            object.__setattr__(self, field.name, limit)
        for name, (low, high) in self.limits().items():
            if low > high:
                raise ValueError(f"min_{name} {low:,.0f} is above max_{name} {high:,.0f}")

    def limits(self) -> dict[str, tuple[float, float]]:
        """(least, greatest) of every cost that is limited."""
        found: dict[str, tuple[float, float]] = {}
        for name in COSTS:
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low is not None or high is not None:
                found[name] = (-float("inf") if low is None else low, float("inf") if high is None else high)
        return found

    def broken(self, base: BaseModel, arch: Architecture) -> list[str]:
        """The limits that the architecture does not meet, by field name."""
        limits = self.limits()
        if not limits:
            return []
        found = costs(arch, base, self.workload, limits)
        low = [f"min_{name}" for name, (least, _) in limits.items() if found[name] < least]
        return low + [f"max_{name}" for name, (_, most) in limits.items() if found[name] > most]

    def admits(self, base: BaseModel, arch: Architecture) -> bool:
        """Whether the architecture meets every limit."""
        return not self.broken(base, arch)
