"""Which architectures a step trains: a pure function of (seed, step), so the same on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from llmnas.cost import Budget, BudgetSampler, bands, count_params
from llmnas.errors import UserError
from llmnas.rng import generator
from llmnas.space import DIMENSIONS, Architecture, SearchSpace
from llmnas.train.settings import Phase, SamplerSettings

_BANDS = 8


class Sampler(Protocol):
    """What the training loop asks for networks."""

    def networks(self, step: int) -> list[Architecture]:
        """The networks of this step; a teacher comes first."""
        ...


class OneNetwork:
    """Trains one network: retraining is supernet training with nothing to choose."""

    def __init__(self, arch: Architecture) -> None:
        self.arch = arch

    def networks(self, step: int) -> list[Architecture]:  # noqa: ARG002 (the same at every step)
        """Always the same network."""
        return [self.arch]


class SupernetSampler:
    """Draws networks within the budget.

    `single`: fewer networks a step buy more steps for the same compute; the largest and
    the smallest are trained in turn, since they bound the others (sandwich rule, Yu and
    Huang 2019). `sandwich` is that rule itself.
    """

    def __init__(self, space: SearchSpace, budget: Budget | None, settings: SamplerSettings, seed: int) -> None:
        self.settings = settings
        self.seed = seed
        self.smallest = space.smallest()
        if settings.distribution == "uniform":
            self._bands = band_samplers(space, budget, seed)
        else:
            self._bands = [BudgetSampler(space, budget)]
        self._phases = [
            (start, SupernetSampler(opened, budget, settings.model_copy(update={"kind": "single", "phases": ()}), seed))
            for start, opened in opening_spaces(space, settings.phases)
        ]
        self.largest = space.largest() if settings.largest == "space" else largest_within(space, budget, seed)

    def networks(self, step: int) -> list[Architecture]:
        """The networks of this step, the largest first where it is one of them."""
        if self._phases:
            return self._phase(step).networks(step)
        kind, every = self.settings.kind, self.settings.anchor_every
        if kind == "sandwich":
            return [self.largest, *(self.draw(step, i) for i in range(self.settings.random)), self.smallest]
        if kind == "uniform":
            return [self.draw(step, i) for i in range(self.settings.random)]
        if every and step % every == 0:
            return [self.largest if step // every % 2 == 0 else self.smallest]
        return [self.draw(step, 0)]

    def draw(self, step: int, network: int) -> Architecture:
        """One random network within the budget."""
        if self._phases:
            return self._phase(step).draw(step, network)
        rng = generator(self.seed, "architecture", step, network)
        return self._bands[rng.integers(len(self._bands))].sample(rng)

    def _phase(self, step: int) -> SupernetSampler:
        """The sampler of what is open at this step."""
        return max((item for item in self._phases if item[0] <= step), key=lambda item: item[0])[1]


def opening_spaces(space: SearchSpace, phases: Sequence[Phase]) -> list[tuple[int, SearchSpace]]:
    """(first step, what may vary from there on) of progressive shrinking; before the first phase nothing varies.

    A dimension that is not open yet has one choice, the largest network's.

    Raises:
        UserError: a phase opens what the space does not have.
    """
    if not phases:
        return []
    names = ("hidden_size", "depth", *DIMENSIONS)
    unknown = [name for phase in phases for name in phase.open if name not in names]
    if unknown:
        raise UserError(f"train.sampler.phases: {unknown[0]!r} is no dimension; allowed: {', '.join(names)}")
    largest = space.largest()
    spec = largest.kept[0][1]
    closed: dict[str, Any] = {
        "hidden_size": (largest.hidden_size,),
        "depth": space.depth.model_copy(update={"choices": (largest.depth,)}),
    }
    closed |= {
        # what the largest network does not use (of attention, where it has none) stays open: it makes no difference
        name: space.dimension(name).model_copy(update={"choices": (getattr(spec, name),)})
        for name in DIMENSIONS
        if spec.uses(name)
    }
    found = [] if phases[0].start == 0 else [(0, space.model_copy(update=closed))]
    for phase in phases:
        closed = {name: value for name, value in closed.items() if name not in phase.open}
        found.append((phase.start, space.model_copy(update=closed)))
    return found


def band_samplers(space: SearchSpace, budget: Budget | None, seed: int) -> list[BudgetSampler]:
    """One sampler for every band of parameter counts that has members: small spaces leave gaps."""
    samplers = [BudgetSampler(space, band) for band in bands(space, budget, _BANDS)]
    return [sampler for sampler in samplers if sampler.feasible(generator(seed, "bands"))]


def largest_within(space: SearchSpace, budget: Budget | None, seed: int, draws: int = 256) -> Architecture:
    """The architecture with the most parameters among draws from the top of the budget."""
    if budget is None or budget.admits(space.base, space.largest()):
        return space.largest()
    drawn = band_samplers(space, budget, seed)[-1].sample_many(generator(seed, "largest"), draws)
    return max(drawn, key=lambda arch: (count_params(arch, space.base).total, arch.id))


def parameter_histogram(space: SearchSpace, sampler: SupernetSampler, draws: int = 512) -> dict[str, float]:
    """Quantiles of the parameter counts that the sampler draws, for the log."""
    counts = [count_params(sampler.draw(i, 0), space.base).total for i in range(draws)]
    return {f"sampled_params_p{q}": float(np.percentile(counts, q)) for q in (1, 10, 25, 50, 75, 90, 99)}
