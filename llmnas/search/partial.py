"""Decisions one by one: which values may come next, so that a member of the space within the budget can follow.

A prefix is the beginning of a code (`space.encode`). What may follow is judged by its cheapest and its dearest
completion, cost by cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llmnas.cost import Budget, costs
from llmnas.space import Architecture, LayerSpec, SearchSpace, cardinalities, even_subset


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
        self._cache: dict[tuple[str, bytes], float] = {}

    def layer_of(self, position: int) -> tuple[int, int] | None:
        """(layer, place in it: 0 is the keep flag) of a position; None for the global decisions."""
        if position < self._globals:
            return None
        return divmod(position - self._globals, 1 + self._own)

    def allowed(self, prefix: list[int]) -> np.ndarray:
        """Which values the next decision may take, `[values]` bool; never none of them."""
        position = len(prefix)
        mask = np.ones(self.values[position], dtype=bool)
        place = self.layer_of(position)
        if place is not None and place[1] == 0:
            mask = np.array([self._subset_can_follow([*self._flags(prefix), flag]) for flag in (0, 1)])
        elif place is not None and prefix[position - place[1]] == 0:
            mask[1:] = False  # a skipped layer decides nothing
        if self._limits and mask.sum() > 1:
            within = mask.copy()
            for value in np.flatnonzero(mask):
                within[value] = self._within([*prefix, int(value)])
            if within.any():
                return within
        return mask

    def build(self, code: Sequence[int]) -> Architecture:
        """The architecture of a whole code; what a layer turns out not to use may have any value in it."""
        space, values = self.space, iter(code)

        def read(names: tuple[str, ...]) -> dict[str, Any]:
            return {name: space.dimension(name).choices[next(values)] for name in names}

        hidden_size, shared = space.hidden_size[next(values)], read(space.shared_dimensions)
        layers = [(next(values), read(space.layer_dimensions)) for _ in range(space.layers)]
        return space.build(hidden_size, {i: LayerSpec(**shared, **own) for i, (kept, own) in enumerate(layers) if kept})

    def _flags(self, prefix: list[int]) -> list[int]:
        return prefix[self._globals :: 1 + self._own]

    def _subset_can_follow(self, flags: list[int]) -> bool:
        """Whether some allowed set of kept layers begins with these flags."""
        space, kept, left = self.space, sum(flags), self.space.layers - len(flags)
        if space.depth.policy == "even":
            subsets = (set(even_subset(space.layers, depth)) for depth in space.depth.choices)
            return any(all((i in subset) == bool(flag) for i, flag in enumerate(flags)) for subset in subsets)
        if space.depth.policy == "keep_ends" and (flags[0] == 0 or (not left and flags[-1] == 0)):
            return False
        least = kept + (1 if space.depth.policy == "keep_ends" and left else 0)
        return any(least <= depth <= kept + left for depth in space.depth.choices)

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

    def _within(self, prefix: list[int]) -> bool:
        """Whether every limit alone can still be met."""
        return all(
            self._completed(prefix, name, dearest=False) <= high and self._completed(prefix, name, dearest=True) >= low
            for name, (low, high) in self._limits.items()
        )

    def _completed(self, prefix: list[int], name: str, dearest: bool) -> float:
        """The cost `name` of the cheapest (dearest) architecture whose code begins with the prefix."""
        code, pick = list(prefix), -1 if dearest else 0
        names = ["hidden_size", *self.space.shared_dimensions]
        own = self.space.layer_dimensions
        while len(code) < len(self.values):
            place = self.layer_of(len(code))
            if place is None:
                code.append(self._orders[name][names[len(code)]][pick])
            elif place[1] == 0:
                flags = self._flags(code)
                wanted = int(dearest)
                code.append(wanted if self._subset_can_follow([*flags, wanted]) else 1 - wanted)
            elif code[len(code) - place[1]] == 0:
                code.append(0)
            else:
                code.append(self._orders[name][own[place[1] - 1]][pick])
        key = (name, np.array(code, dtype=np.int16).tobytes())
        if key not in self._cache:
            if len(self._cache) > 200_000:
                self._cache.clear()
            self._cache[key] = costs(self.build(code), self.space.base, self._budget.workload)[name]
        return self._cache[key]
