"""The best network of all cells by learned block scores: one integer program a cell, and only where it can pay.

Shapes: C cells; L layers; O options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from llmnas.search.block_model import BlockLayout, Scores
from llmnas.search.mip import NODES, BlockCosts, Cell, Limit, Program
from llmnas.space import Architecture, SearchSpace

_CUTS = 8
"""So often known answers of a cell are passed over for a new one, each time twice as many."""
_PRICES, _THIRDS = 8.0, 16
"""Multipliers of limits are sought within this logarithm of the scores' spread over the cost's, in so many steps."""


class _Ranked:
    """The networks of one program, the best first as far as `NODES` go, those known passed over: one more, two more,
    four more at a time."""

    def __init__(self, program: Program, known: Sequence[np.ndarray]) -> None:
        self._program = program
        self._known = known
        self._cut = 0
        self.solution = program.next(nodes=NODES)

    def advance(self) -> None:
        """`solution` becomes the next that is not among the best known."""
        end = 2 * self._cut + 1
        for choice in self._known[self._cut : end]:
            self._program.cut(choice)
        self._cut = end
        self.solution = self._program.next(nodes=NODES)


class CellPrograms:
    """Networks by the sum of their block scores, for limits of any kind; `score` comes before `best`.

    Args:
        new: whether an architecture may be an answer.
    """

    def __init__(self, space: SearchSpace, layout: BlockLayout, new: Callable[[Architecture], bool]) -> None:
        self._space = space
        self._layout = layout
        self._new = new
        self._known: dict[int, list[np.ndarray]] = {}
        self._programs: dict[tuple[Any, ...], _Ranked] = {}
        self._scores = Scores(np.zeros(0), np.zeros(0))

    def know(self, archs: Sequence[Architecture]) -> None:
        """Pass over these when answers must be new."""
        for c, choice in zip(*self._layout.encode(archs), strict=True):
            self._known.setdefault(int(c), []).append(choice)

    def score(self, table: Callable[[Cell], BlockCosts], sign: float) -> None:
        """What is least, times `sign`, from now on (its maxima over blocks, if any, left out)."""
        self._scores = Scores(*(sign * part for part in self._sums(table)))
        self._programs = {}

    def best(self, limits: Sequence[Limit], *, passing: bool) -> Architecture | None:
        """The best architecture within the limits if it is new; with `passing` the best that is, as far as cuts go.

        Programs are solved for the cells of the least lower bounds only, as long as these are below what was found.
        """
        bounds = self._bounds(limits)
        found, least = None, np.inf
        for c in np.argsort(bounds, kind="stable"):
            if bounds[c] >= least:
                break
            ranked = self._ranked(int(c), limits)
            for _ in range(_CUTS + 1 if passing else 1):
                solution = ranked.solution
                if solution is None or self._scores.base[c] + solution.score >= least:
                    break
                new = self._new(solution.arch)
                if new or not passing:
                    found, least = solution.arch if new else None, self._scores.base[c] + solution.score
                    break
                ranked.advance()
        return found

    def _ranked(self, c: int, limits: Sequence[Limit]) -> _Ranked:
        """The program of a cell, kept as long as scores are (the next place of a batch may have the same limits)."""
        key = (c, *((limit.name, limit.low, limit.high) for limit in limits))
        if key not in self._programs:
            cell = self._layout.cells[c]
            own = self._scores.blocks[c, :, : len(cell.options)]
            rows = np.arange(len(own))
            known = sorted(self._known.get(c, []), key=lambda choice: float(own[rows, choice].sum()))
            self._programs[key] = _Ranked(Program(self._space, cell, own, limits), known)
        return self._programs[key]

    def _bounds(self, limits: Iterable[Limit]) -> np.ndarray:
        """[C]: nothing in a cell within the limits is better (by Lagrange multipliers, one limit at a time).

        Infinite for a cell of which nothing is within a limit.
        """
        base = self._scores.base
        real = self._layout.real[:, None, :]
        own = np.where(real, self._scores.blocks, np.inf)
        found = base + self._least(own)
        for limit in limits:
            cost = self._sums(limit.costs)
            for sign, end in ((1.0, limit.high), (-1.0, -limit.low)):
                within = self._least(np.where(real, sign * cost.blocks, np.inf)) + sign * cost.base <= end
                within &= limit.low <= limit.high
                found = np.where(within, found, np.inf)
            unit = np.log(self._scores.blocks.std() / (cost.blocks.std() or 1.0) or 1.0)
            for sign, end in ((1.0, limit.high), (-1.0, limit.low)):

                def bound(price: np.ndarray, sign: float = sign, end: float = end, cost: Scores = cost) -> np.ndarray:
                    priced = sign * np.exp(price)
                    least = self._least(own + priced[:, None, None] * cost.blocks)
                    return np.asarray(base + least - priced * (end - cost.base))

                low, high = np.full(len(base), unit - _PRICES), np.full(len(base), unit + _PRICES)
                for _ in range(_THIRDS if np.isfinite(end) else 0):  # concave in the price
                    third = (high - low) / 3
                    left, right = bound(low + third), bound(high - third)
                    low, high = np.where(left < right, low + third, low), np.where(left < right, high, high - third)
                    found = np.maximum(found, np.maximum(left, right))
        return np.asarray(found)

    def _least(self, blocks: np.ndarray) -> np.ndarray:
        """[C]: the least sum over layers that any admitted depth has, whichever layers are skipped."""
        skips = blocks[:, :, 0]
        gains = np.sort(blocks[:, :, 1:].min(2) - skips, axis=1).cumsum(1)
        return np.asarray(skips.sum(1) + gains[:, np.array(self._space.depth.choices) - 1].min(1))

    def _sums(self, table: Callable[[Cell], BlockCosts]) -> Scores:
        """A metric of all cells as sums over blocks, but for a maximum over them."""
        tables = [table(cell) for cell in self._layout.cells]
        blocks = np.zeros((len(tables), self._layout.layers, self._layout.options))
        for c, found in enumerate(tables):
            blocks[c, :, : found.blocks.shape[1]] = found.blocks
        return Scores(np.array([found.fixed for found in tables]), blocks)
