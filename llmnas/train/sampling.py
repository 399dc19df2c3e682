"""Which architectures a step trains: the same on every rank, and after every resume.

A pure function of (seed, step), except for the attentive sampler, which also looks at what it was told: losses
averaged over processes, and its state is in the checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from llmnas.cost import Budget, BudgetSampler, bands, count_params
from llmnas.errors import UserError
from llmnas.rng import generator
from llmnas.space import DIMENSIONS, Architecture, SearchSpace
from llmnas.train.attentive import Predictor, Ridge, choose
from llmnas.train.fair import FairCycle
from llmnas.train.path_dropout import drop_layers
from llmnas.train.settings import PathDropout, Phase, SamplerSettings

_BANDS = 8


class Sampler(Protocol):
    """What the training loop asks for networks.

    `predictor`: is told the losses of every step, and its state goes into checkpoints; None where
    (seed, step) says everything.
    """

    predictor: Predictor | None

    def networks(self, step: int) -> list[Architecture]:
        """The networks of this step; a teacher comes first."""
        ...


class OneNetwork:
    """Trains one network: retraining is supernet training with nothing to choose."""

    def __init__(self, arch: Architecture) -> None:
        self.arch = arch
        self.predictor: Predictor | None = None

    def networks(self, step: int) -> list[Architecture]:  # noqa: ARG002 (the same at every step)
        """Always the same network."""
        return [self.arch]


class SupernetSampler:
    """Draws networks within the budget.

    `single`: fewer networks a step buy more steps for the same compute; the largest and
    the smallest are trained in turn, since they bound the others (sandwich rule, Yu and
    Huang 2019). `sandwich` is that rule itself.

    Args:
        predictor: of the attentive sampler; by default a `Ridge` on the losses it is told.
    """

    def __init__(
        self,
        space: SearchSpace,
        budget: Budget | None,
        settings: SamplerSettings,
        seed: int,
        predictor: Predictor | None = None,
    ) -> None:
        self.settings = settings
        self.seed = seed
        self.smallest = space.smallest()
        self.predictor = _predictor(space, settings, predictor)
        self._fair = FairCycle(space, budget, seed) if settings.kind == "fair" else None
        self._dropout = _Dropout(space, budget, settings.path_dropout) if settings.path_dropout else None
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
        if kind in ("uniform", "fair"):
            return [self.draw(step, i) for i in range(self.settings.random)]
        if every and step % every == 0:
            return [self.largest if step // every % 2 == 0 else self.smallest]
        return [self.draw(step, 0)]

    def draw(self, step: int, network: int) -> Architecture:
        """One random network within the budget."""
        if self._phases:
            return self._phase(step).draw(step, network)
        if self._fair:
            return self._fair.network(step * self.settings.random + network)
        rng = generator(self.seed, "architecture", step, network)
        band = self._bands[rng.integers(len(self._bands))]
        if self.settings.attentive and self.predictor:
            options = self.settings.attentive
            drawn = choose(self.predictor, band.sample_many(rng, options.pool), options.pick)
        else:
            drawn = band.sample(rng)
        return self._dropout.apply(drawn, step, rng) if self._dropout else drawn

    def _phase(self, step: int) -> SupernetSampler:
        """The sampler of what is open at this step."""
        return max((item for item in self._phases if item[0] <= step), key=lambda item: item[0])[1]


class _Dropout:
    """Path dropout whose rate rises over the first steps."""

    def __init__(self, space: SearchSpace, budget: Budget | None, options: PathDropout) -> None:
        if space.depth.policy == "even" or len(space.depth.choices) == 1:
            raise UserError(
                "train.sampler.path_dropout: this space's depth (policy even, or one choice) leaves no layer to drop; "
                "use depth.policy any or keep_ends with several choices"
            )
        self.space, self.budget, self.options = space, budget, options

    def apply(self, arch: Architecture, step: int, rng: np.random.Generator) -> Architecture:
        """The network with layers dropped at the rate of this step."""
        ramp = self.options.ramp
        rate = self.options.rate * (min(1.0, step / ramp) if ramp else 1.0)
        return drop_layers(self.space, self.budget, arch, rate, rng)


def _predictor(space: SearchSpace, settings: SamplerSettings, given: Predictor | None) -> Predictor | None:
    """The one that the attentive sampler asks."""
    if given and not settings.attentive:
        raise ValueError("a predictor is asked only by the attentive sampler")
    if settings.attentive and not given:
        return Ridge(space, settings.attentive.forget, settings.attentive.start)
    return given


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
