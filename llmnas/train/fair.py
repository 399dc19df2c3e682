"""Strict fairness: every choice of every dimension is trained equally often (Chu et al. 2021, "FairNAS", section 3.2).

There a step trains m networks, one for each of the m blocks that a layer can choose from, so that each block gets the
same number of updates. Here dimensions have different numbers of choices and layers may be skipped, so the promise is
kept over a cycle of networks, long enough to divide evenly. Over each cycle, exactly:

- every hidden size, every depth and every choice of a shared dimension is drawn equally often;
- with policy `any` every layer is kept equally often, with `keep_ends` every inner one (`even` fixes the subsets);
- in every layer that is kept, every choice of its own dimensions is drawn equally often.

Without limits of cost the choices come in shuffled decks, so the counts never differ by more than one on the way.
Within a budget, networks of a cycle trade choices until all of them fit, which leaves every count as it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmnas.cost import Budget, costs
from llmnas.errors import UserError
from llmnas.rng import generator
from llmnas.space import Architecture, LayerSpec, SearchSpace
from llmnas.space.space import even_subset

_LONGEST = 100_000
_TRADES = 400  # tries for each network of a cycle


@dataclass
class _Column:
    """One decision over the cycle: who takes part in it, and what each of them got."""

    name: str
    layer: int | None
    members: np.ndarray
    values: np.ndarray


class FairCycle:
    """Networks in cycles of `length`; network n is a function of (space, budget, seed, n) alone.

    Raises:
        UserError: the cycle would be too long, or (when a network is asked for) cannot be had within the budget.
    """

    def __init__(self, space: SearchSpace, budget: Budget | None, seed: int) -> None:
        self.space = space
        self.budget = budget or Budget()
        self.seed = seed
        self.length = cycle_length(space)
        self._number = -1
        self._networks: list[Architecture] = []

    def network(self, n: int) -> Architecture:
        """The n-th network that is trained."""
        number, place = divmod(n, self.length)
        if number != self._number:
            self._networks, self._number = self._build(number), number
        return self._networks[place]

    def _build(self, number: int) -> list[Architecture]:
        rng = generator(self.seed, "fair", number)
        space, length = self.space, self.length
        everyone = np.arange(length)
        columns = [_Column("hidden_size", None, everyone, _deck(space.hidden_size, length, rng))]
        columns += [
            _Column(name, None, everyone, _deck(space.dimension(name).choices, length, rng))
            for name in space.shared_dimensions
        ]
        kept = balanced_subsets(space, _deck(space.depth.choices, length, rng).tolist(), rng)
        for layer in range(space.layers):
            members = np.array([n for n in range(length) if layer in kept[n]], dtype=int)
            for name in space.layer_dimensions:
                values = _deck(space.dimension(name).choices, len(members), rng)
                columns.append(_Column(name, layer, members, values))
        drawn = _Draft(space, kept, columns)
        if self.budget.limits():
            self._fit(drawn, rng)
        return [drawn.network(n) for n in range(length)]

    def _fit(self, drawn: _Draft, rng: np.random.Generator) -> None:
        """Let networks outside of the budget trade choices with others; no trade adds to what is too much in all."""
        excess = np.array([self._excess(drawn.network(n)) for n in range(self.length)])
        free = [column for column in drawn.columns if len(set(column.values.tolist())) > 1]
        for _ in range(_TRADES * self.length):
            outside = np.flatnonzero(excess)
            if not len(outside) or not free:
                break
            first = outside[rng.integers(len(outside))]
            column = free[rng.integers(len(free))]
            mine = np.flatnonzero(column.members == first)
            if not len(mine):
                continue
            i, j = int(mine[0]), int(rng.integers(len(column.members)))
            if column.values[i] == column.values[j]:
                continue
            second = column.members[j]
            column.values[[i, j]] = column.values[[j, i]]
            after = [self._excess(drawn.network(n)) for n in (first, second)]
            if sum(after) <= excess[first] + excess[second]:
                excess[[first, second]] = after
            else:
                column.values[[i, j]] = column.values[[j, i]]
        if excess.any():
            raise UserError(
                f"train.sampler.kind: fair: {np.count_nonzero(excess)} of the {self.length} networks of a cycle stay "
                "outside of the budget: it rules out some choices nearly always; loosen it, or drop those choices"
            )

    def _excess(self, arch: Architecture) -> float:
        """How far outside of the budget, relative to the limits and summed over them; 0 inside."""
        found = costs(arch, self.space.base, self.budget.workload)
        limits = self.budget.limits().items()
        return sum(max(0.0, found[name] / high - 1, 1 - found[name] / max(low, 1e-9)) for name, (low, high) in limits)


class _Draft:
    """The networks of a cycle while they trade: columns of decisions."""

    def __init__(self, space: SearchSpace, kept: list[tuple[int, ...]], columns: list[_Column]) -> None:
        self.space, self.kept, self.columns = space, kept, columns
        self._place = [
            dict(zip(column.members.tolist(), range(len(column.members)), strict=True)) for column in columns
        ]

    def network(self, n: int) -> Architecture:
        """Network n as its decisions stand."""
        shared: dict[str, Any] = {}
        own: dict[int, dict[str, Any]] = {layer: {} for layer in self.kept[n]}
        for column, place in zip(self.columns, self._place, strict=True):
            if n in place:
                value = column.values[place[n]]
                target = shared if column.layer is None else own[column.layer]
                target[column.name] = value.item() if isinstance(value, np.generic) else value
        hidden_size = shared.pop("hidden_size")
        return self.space.build(hidden_size, {i: LayerSpec(**shared, **values) for i, values in own.items()})


def cycle_length(space: SearchSpace) -> int:
    """The least number of networks over which everything divides evenly.

    Raises:
        UserError: it is beyond 100,000.
    """
    shared = [len(space.dimension(name).choices) for name in space.shared_dimensions]
    depths = space.depth.choices
    step = math.lcm(len(space.hidden_size), len(depths), *shared)
    own = math.lcm(*(len(space.dimension(name).choices) for name in space.layer_dimensions))
    for length in range(step, _LONGEST + 1, step):
        if all(count % own == 0 for count in _kept_counts(space, length)):
            return length
    raise UserError(
        f"train.sampler.kind: fair needs cycles of more than {_LONGEST:,} networks here: give the dimensions "
        "numbers of choices that share factors (2, 4, 8)"
    )


def _kept_counts(space: SearchSpace, length: int) -> list[float]:
    """How often each sort of layer is kept in a cycle; a fraction where it does not divide."""
    times, depths = length // len(space.depth.choices), space.depth.choices
    if space.depth.policy == "even":
        subsets = [even_subset(space.layers, depth) for depth in depths]
        return [times * sum(layer in subset for subset in subsets) for layer in range(space.layers)]
    ends = [0, space.layers - 1] if space.depth.policy == "keep_ends" and space.layers > 1 else []
    inner = space.layers - len(ends)
    total = times * (sum(depths) - len(ends) * len(depths))
    return [float(length)] * len(ends) + [total / inner for _ in range(inner)]


def balanced_subsets(space: SearchSpace, depths: list[int], rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Kept layers for each depth: those kept least often so far, at random among equals."""
    if space.depth.policy == "even":
        return [even_subset(space.layers, depth) for depth in depths]
    ends = {0, space.layers - 1} if space.depth.policy == "keep_ends" and space.layers > 1 else set()
    inner = np.array([layer for layer in range(space.layers) if layer not in ends], dtype=int)
    counts = np.zeros(len(inner))
    found = []
    for depth in depths:
        taken = np.argsort(counts + rng.random(len(inner)) / 2)[: depth - len(ends)]
        counts[taken] += 1
        found.append(tuple(sorted({*ends, *inner[taken].tolist()})))
    return found


def _deck(choices: tuple[Any, ...], count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` values, each choice once in every run of as many as there are choices, shuffled within."""
    runs = [rng.permutation(len(choices)) for _ in range(count // len(choices))]
    order = np.concatenate(runs) if runs else np.empty(0, dtype=int)
    values = np.array(choices, dtype=object if isinstance(choices[0], str) else int)
    return np.asarray(values[order])
