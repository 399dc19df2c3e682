"""Metrics beside those of the evaluator: each is a function of its own, and only those asked for are run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from llmnas.errors import RunError
from llmnas.space import Architecture

Evaluate = Callable[[Sequence[Architecture]], Sequence[Mapping[str, float]]]


class Provider(NamedTuple):
    """One metric.

    Attributes:
        metric: its name.
        values: one number an architecture, in order; several at once so that measurements can be interleaved.
        provenance: what the number is and where it comes from, in words; an estimate says so.
        noise: relative, of every value so far; None where values are not measured one by one.
    """

    metric: str
    values: Callable[[Sequence[Architecture]], Sequence[float]]
    provenance: str
    noise: list[float] | None = None

    def about(self) -> str:
        """The provenance, with the mean noise of what was measured until now."""
        if not self.noise:
            return self.provenance
        return f"{self.provenance}, mean noise {sum(self.noise) / len(self.noise):.1%} over {len(self.noise)} networks"


def with_providers(evaluate: Evaluate, providers: Sequence[Provider]) -> Evaluate:
    """An evaluator whose metrics are joined by those of the providers.

    Raises (when called):
        RunError: a provider gave another number of values than architectures.
    """
    if not providers:
        return evaluate

    def extended(archs: Sequence[Architecture]) -> list[dict[str, float]]:
        found = [dict(metrics) for metrics in evaluate(archs)]
        for provider in providers:
            values = provider.values(archs)
            if len(values) != len(archs):
                raise RunError(f"{provider.metric}: {len(values)} values for {len(archs)} architectures")
            for metrics, value in zip(found, values, strict=True):
                metrics[provider.metric] = value
        return found

    return extended
