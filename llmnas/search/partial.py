"""Decisions one by one: which values may come next, so that a member of the space within the budget can follow.

A prefix is the beginning of a code (`space.encode`). What may follow is judged by its cheapest and its dearest
completion, cost by cost.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from llmnas.cost import Budget, costs, memory
from llmnas.space import Architecture, LayerSpec, SearchSpace, cardinalities, even_subset

_KEPT = 100_000
"""Costs of layers, and completions of sets of layers, that are remembered."""


class Sum(NamedTuple):
    """A cost of some layers: what adds up, and the greatest of what does not (activations)."""

    total: float = 0.0
    peak: float = 0.0

    def and_also(self, other: Sum, times: int = 1) -> Sum:
        """Of these layers and of `times` further ones that cost the same."""
        return Sum(self.total + times * other.total, max(self.peak, other.peak if times else 0.0))


class Decisions:
    """The code of a space as a sequence of decisions with masks.

    With one upper (or one lower) limit the mask is exact: every value that it leaves has a completion within
    the budget, as far as a cost grows with every choice by itself. With several limits each is met by a
    completion, perhaps not by the same one: what comes out is to be checked, and drawn again.
    """

    def __init__(self, space: SearchSpace, budget: Budget | None) -> None:
        self.space = space
        self.values = cardinalities(space)
        self._budget = budget or Budget()
        self._globals = 1 + len(space.shared_dimensions)
        self._own = len(space.layer_dimensions)
        self._limits = self._budget.limits()
        self._orders = {name: self._order(name) for name in self._limits}
        self._layers = functools.lru_cache(_KEPT)(self._layer_cost)
        self._rest = functools.lru_cache(_KEPT)(self._kept_after)

    def layer_of(self, position: int) -> tuple[int, int] | None:
        """(layer, place in it: 0 is the keep flag) of a position; None for the global decisions."""
        if position < self._globals:
            return None
        return divmod(position - self._globals, 1 + self._own)

    def allowed(self, prefix: Sequence[int]) -> np.ndarray:
        """Which values the next decision may take, `[values]` bool; never none of them."""
        walk = Walk(self)
        for value in prefix:
            walk.write(int(value))
        return walk.allowed()

    def build(self, code: Sequence[int]) -> Architecture:
        """The architecture of a whole code; what a layer turns out not to use may have any value in it."""
        space, values = self.space, iter(code)

        def read(names: tuple[str, ...]) -> dict[str, Any]:
            return {name: space.dimension(name).choices[next(values)] for name in names}

        hidden_size, shared = space.hidden_size[next(values)], read(space.shared_dimensions)
        layers = [(next(values), read(space.layer_dimensions)) for _ in range(space.layers)]
        return space.build(hidden_size, {i: LayerSpec(**shared, **own) for i, (kept, own) in enumerate(layers) if kept})

    def subset_can_follow(self, flags: Sequence[int]) -> bool:
        """Whether some allowed set of kept layers begins with these flags."""
        space, kept, left = self.space, sum(flags), self.space.layers - len(flags)
        if space.depth.policy == "even":
            subsets = (set(even_subset(space.layers, depth)) for depth in space.depth.choices)
            return any(all((i in subset) == bool(flag) for i, flag in enumerate(flags)) for subset in subsets)
        if space.depth.policy == "keep_ends" and (flags[0] == 0 or (not left and flags[-1] == 0)):
            return False
        least = kept + (1 if space.depth.policy == "keep_ends" and left else 0)
        return any(least <= depth <= kept + left for depth in space.depth.choices)

    def kept_after(self, flags: Sequence[int], dearest: bool) -> int:
        """How many of the layers that follow the cheapest (dearest) completion of these flags keeps."""
        if self.space.depth.policy == "even":
            return self._rest(tuple(flags), dearest)
        # only how many there are and how many are kept matters, and whether the ends are
        kept, written = sum(flags), len(flags)
        first = flags[0] if flags else None
        if first is None:
            return self._rest((), dearest)
        standing = [first, *[1] * (kept - first), *[0] * (written - 1 - (kept - first))]
        return self._rest(tuple(standing), dearest)

    def _kept_after(self, flags: tuple[int, ...], dearest: bool) -> int:
        found, wanted = list(flags), int(dearest)
        while len(found) < self.space.layers:
            found.append(wanted if self.subset_can_follow([*found, wanted]) else 1 - wanted)
        return sum(found[len(flags) :])

    def extreme(self, name: str, dearest: bool, written: Sequence[int]) -> list[int]:
        """The cheapest (dearest) values of a layer's own decisions that begin with those written."""
        own, pick = self.space.layer_dimensions, -1 if dearest else 0
        return [*written, *(self._orders[name][dimension][pick] for dimension in own[len(written) :])]

    def extreme_globals(self, name: str, dearest: bool, written: Sequence[int]) -> tuple[int, ...]:
        """The cheapest (dearest) global decisions that begin with those written."""
        names, pick = ["hidden_size", *self.space.shared_dimensions], -1 if dearest else 0
        return (*written, *(self._orders[name][dimension][pick] for dimension in names[len(written) :]))

    def layer_cost(self, name: str, shared: tuple[int, ...], own: Sequence[int]) -> Sum:
        """What one layer of these decisions adds to a cost."""
        return self._layers(name, shared, tuple(own), 0)

    def fixed_cost(self, name: str, shared: tuple[int, ...]) -> Sum:
        """What there is of a cost without any layer."""
        return self._layers(name, shared, (0,) * self._own, 1)

    def _layer_cost(self, name: str, shared: tuple[int, ...], own: tuple[int, ...], fixed: int) -> Sum:
        """By the difference of a network of two such layers and of one, as `mip.closed_form` has it."""
        space, values = self.space, iter(shared)
        hidden_size = space.hidden_size[next(values)]
        sizes = {n: space.dimension(n).choices[v] for n, v in zip(space.shared_dimensions, values, strict=True)}
        sizes |= {n: space.dimension(n).choices[v] for n, v in zip(space.layer_dimensions, own, strict=True)}
        spec = LayerSpec(**sizes)

        def price(layers: tuple[LayerSpec, ...]) -> Sum:
            arch, workload = Architecture(hidden_size, layers), self._budget.workload
            peak = memory(arch, space.base, workload).activations if name == "memory_bytes" else 0
            return Sum(costs(arch, space.base, workload, (name,))[name] - peak, peak)

        one, two = price((spec,)), price((spec, spec))
        return Sum(2 * one.total - two.total) if fixed else Sum(two.total - one.total, one.peak)

    def _order(self, name: str) -> dict[str, list[int]]:
        """For hidden size and every dimension its values from the cheapest to the dearest, around the middle."""
        space = self.space
        middle = space.middle()

        def price(changed: dict[str, object]) -> float:
            hidden = changed.pop("hidden_size", middle.hidden_size)
            layers = tuple(None if spec is None else replace(spec, **changed) for spec in middle.layers)  # type: ignore[arg-type]
            return costs(replace(middle, hidden_size=hidden, layers=layers), space.base, self._budget.workload)[name]  # type: ignore[arg-type]

        choices = {"hidden_size": space.hidden_size} | {
            dimension: space.dimension(dimension).choices
            for dimension in (*space.shared_dimensions, *space.layer_dimensions)
        }
        return {
            dimension: sorted(range(len(values)), key=lambda i: (price({dimension: values[i]}), i))
            for dimension, values in choices.items()
        }

    @property
    def limits(self) -> dict[str, tuple[float, float]]:
        """(low, high) of every limited cost."""
        return self._limits


class Walk:
    """One code being written, decision by decision."""

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions
        self._globals: tuple[int, ...] = ()
        self._flags: list[int] = []
        self._own: list[int] = []  # of the layer that is being written
        self._done = dict.fromkeys(decisions.limits, Sum())  # of the layers that are written
        self._written = 0

    def write(self, value: int) -> None:
        """The next decision has this value."""
        place = self._decisions.layer_of(self._written)
        self._written += 1
        if place is None:
            self._globals = (*self._globals, value)
            return
        if place[1] == 0:
            self._flags.append(value)
            self._own = []
        else:
            self._own.append(value)
        if self._flags[-1] and len(self._own) == len(self._decisions.space.layer_dimensions):
            for name, done in self._done.items():
                self._done[name] = done.and_also(self._decisions.layer_cost(name, self._globals, self._own))

    def allowed(self) -> np.ndarray:
        """Which values the next decision may take, `[values]` bool; never none of them."""
        decisions = self._decisions
        mask = np.ones(decisions.values[self._written], dtype=bool)
        place = decisions.layer_of(self._written)
        if place is not None and place[1] == 0:
            mask[:] = [decisions.subset_can_follow([*self._flags, flag]) for flag in (0, 1)]
        elif place is not None and not self._flags[-1]:
            mask[1:] = False  # a skipped layer decides nothing
        if decisions.limits and mask.sum() > 1:
            within = mask.copy()
            for value in np.flatnonzero(mask):
                within[value] = self._within(int(value))
            if within.any():
                return within
        return mask

    def _within(self, value: int) -> bool:
        """Whether every limit alone can still be met after this value."""
        return all(
            self._completed(name, value, dearest=False) <= high and self._completed(name, value, dearest=True) >= low
            for name, (low, high) in self._decisions.limits.items()
        )

    def _completed(self, name: str, value: int, dearest: bool) -> float:
        """The cost `name` of the cheapest (dearest) architecture whose code goes on with this value."""
        decisions, flags = self._decisions, self._flags
        open_: list[int] | None = None
        place = decisions.layer_of(self._written)
        if place is None:
            shared = decisions.extreme_globals(name, dearest, (*self._globals, value))
        else:
            shared = self._globals
            if place[1] == 0:
                flags = [*flags, value]
                open_ = [] if value else None
            elif flags[-1]:
                open_ = [*self._own, value]
        cost = decisions.fixed_cost(name, shared).and_also(self._done[name])
        if open_ is not None:
            cost = cost.and_also(decisions.layer_cost(name, shared, decisions.extreme(name, dearest, open_)))
        more = decisions.kept_after(flags, dearest)
        if more:
            cost = cost.and_also(decisions.layer_cost(name, shared, decisions.extreme(name, dearest, ())), more)
        return cost.total + cost.peak
