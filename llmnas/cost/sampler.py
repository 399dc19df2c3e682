"""Drawing architectures under a budget, exactly and without stalling.

`SearchSpace.sample` conditioned on the budget is the wanted distribution. Plain rejection
needs 1 / P(budget) tries. Every cost is a constant of a cell plus a sum over the kept layers (`tables.py`),
so the space can be tilted exponentially: drawing a with probability
q(a) ~ mu(a) exp(-sum_j t_j c_j(a)) stays a product over layers, and accepting it with
probability exp(sum_j t_j (c_j(a) - r_j)), r_j the limit that t_j pushes towards, restores
mu exactly (Siegmund 1976, importance sampling by exponential change of measure). The best
tilt minimises the Chernoff bound log Z(t) + sum_j t_j r_j, which is convex. A target that is rare
although no tilt makes it likelier (a single value near the mean) is found by pairing halves. Cells and depths
of which no sum of layers lies within the limits are left out where they are most of what would be drawn: one parameter
count is often that of a single cell.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from llmnas.cost.budget import Budget
from llmnas.cost.tables import reachable, tabulate
from llmnas.errors import UserError
from llmnas.space import Architecture, SearchSpace

_CHUNK = 64
_MOST_CHUNK = 4096
_MOST_PROPOSALS = 60_000
_HALVES = 4096
_ROUNDS = 64
_WORTH_IT = 0.1
"""Where possible cells have a smaller share of the draws than this, the others are left out. Elsewhere they stay, which
wastes little and keeps the draws of a seed, by which searches are replayed, as they always were."""


class BudgetSampler:
    """Draws from `space.sample` conditioned on `budget`; building one costs milliseconds.

    Raises:
        UserError: a limit that no architecture of the space meets, by name.
    """

    def __init__(self, space: SearchSpace, budget: Budget | None) -> None:
        self.space = space
        self.budget = budget or Budget()
        self._limits = self.budget.limits()
        if not self._limits:
            return
        self._table = tabulate(space, list(self._limits), self.budget.workload)
        self._check_reachable()
        low, high = np.array(list(self._limits.values()), float).T  # integers above 2^63 too
        unit = np.where(np.isfinite(high), high, low)  # costs in units of the limit
        self._low, self._high = low / unit, high / unit
        self._fixed, self._layer = self._table.fixed / unit, self._table.layer / unit
        self._depths = np.array(space.depth.choices)
        self._possible = self._table.possible(self._depths, low, high)
        self._drawn = np.ones_like(self._possible)
        if not self._possible.any():
            return
        tilt = self._best_tilt()
        cell, _ = self._log_weights(tilt)
        if logsumexp(cell[self._possible]) < logsumexp(cell) + math.log(_WORTH_IT):
            self._drawn = self._possible
            tilt = self._best_tilt()
        self._prepare(tilt)

    def sample(self, rng: np.random.Generator) -> Architecture:
        """One architecture within the budget."""
        return self.sample_many(rng, 1)[0]

    def sample_many(self, rng: np.random.Generator, count: int) -> list[Architecture]:
        """`count` independent architectures within the budget.

        Raises:
            UserError: no sum of layers can meet it, or neither the tilted draws nor billions of paired halves did.
        """
        if not self._limits:
            return [self.space.sample(rng) for _ in range(count)]
        if not self._possible.any():
            raise UserError(self._unmet("no sum of layers does"))
        found: list[Architecture] = []
        proposals, chunk = 0, _CHUNK
        while len(found) < count and (found or proposals < _MOST_PROPOSALS):
            found += itertools.islice(self._propose(rng, chunk), count - len(found))
            proposals += chunk
            if proposals > 1000 * (len(found) + 1):
                chunk = min(2 * chunk, _MOST_CHUNK)
        while len(found) < count:
            found.append(self._pair_halves(rng))
        return found

    def feasible(self, rng: np.random.Generator) -> bool:
        """Whether any architecture meets the budget, as far as targeted draws can tell."""
        try:
            self.sample(rng)
        except UserError:
            return False
        return True

    def _check_reachable(self) -> None:
        least = self._table.least(self.space.depth.choices[0])
        most = self._table.most(self.space.depth.choices[-1])
        for (name, (low, high)), smallest, largest in zip(self._limits.items(), least, most, strict=True):
            if high < smallest:
                raise UserError(f"budget: max_{name} = {high:,.0f}, but the smallest architecture has {smallest:,.0f}")
            if low > largest:
                raise UserError(f"budget: min_{name} = {low:,.0f}, but the largest architecture has {largest:,.0f}")

    def _log_weights(self, tilt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(log weight of every (cell, depth), log weight of every option in a cell) under a tilt [costs]."""
        fits = self._table.fits
        option = np.where(fits, -self._layer @ tilt - math.log(fits.shape[1]), -np.inf)
        per_layer = logsumexp(option, axis=1)
        # a depth counts by its share among depths whatever its number of subsets, as in `SearchSpace.sample`
        cell = -(self._fixed @ tilt)[:, None] + self._depths[None, :] * per_layer[:, None]
        return np.where(self._drawn, cell, -np.inf), option

    def _best_tilt(self) -> np.ndarray:
        """Minimise log Z(t) + sum t+ high - sum t- low over t = t+ - t-, both parts >= 0."""
        n = len(self._low)
        open_above, open_below = np.isinf(self._high), np.isinf(self._low)
        high, low = np.where(open_above, 0, self._high), np.where(open_below, 0, self._low)
        bounds = [(0, 0 if open_ else 1e5) for open_ in (*open_above, *open_below)]

        def bound(parts: np.ndarray) -> tuple[float, np.ndarray]:
            cell, option = self._log_weights(parts[:n] - parts[n:])
            total = float(logsumexp(cell))
            p_cell = np.exp(cell - total)
            p_option = np.exp(option - logsumexp(option, axis=1, keepdims=True))
            layer_mean = np.einsum("co,coj->cj", p_option, self._layer)
            mean = p_cell.sum(1) @ self._fixed + (p_cell @ self._depths) @ layer_mean
            value = total + float(parts[:n] @ high - parts[n:] @ low)
            return value, np.concatenate([high - mean, mean - low])

        best = minimize(bound, np.zeros(2 * n), jac=True, bounds=bounds, method="L-BFGS-B")
        return np.asarray(best.x[:n] - best.x[n:])

    def _prepare(self, tilt: np.ndarray) -> None:
        cell, option = self._log_weights(tilt)
        self._tilt = tilt
        self._cell_cdf = np.cumsum(np.exp(cell - logsumexp(cell)).ravel())
        self._option_cdf = np.cumsum(np.exp(option - logsumexp(option, axis=1, keepdims=True)), axis=1)
        reference = np.where(tilt > 0, self._high, self._low)
        self._reference = np.where(tilt == 0, 0, reference)

    def _draw_cells(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Tilted draws of (cell, depth), `[count]` each."""
        places = np.searchsorted(self._cell_cdf, rng.random(count) * self._cell_cdf[-1])
        cells, depths = np.divmod(places, len(self._depths))
        return cells, self._depths[depths]

    def _draw_options(self, rng: np.random.Generator, cells: np.ndarray, layers: int) -> np.ndarray:
        """Tilted draws of layers, `[count, layers]` indices into the options of each cell."""
        cdf = self._option_cdf[cells]
        draws = rng.random((len(cells), layers))
        return np.asarray((draws[:, :, None] * cdf[:, None, -1:] > cdf[:, None, :]).sum(2))

    def _accepted(self, total: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Which totals `[count, costs]` are within the limits, thinned to the untilted distribution."""
        inside = ((total <= self._high + 1e-9) & (total >= self._low - 1e-9)).all(1)
        kept = np.exp(np.minimum((total - self._reference) @ self._tilt, 0)) > rng.random(len(total))
        return np.asarray(inside & kept)

    def _propose(self, rng: np.random.Generator, count: int) -> Iterator[Architecture]:
        """A chunk of tilted draws, thinned to `space.sample`'s distribution within the limits; builds what is taken."""
        cells, depths = self._draw_cells(rng, count)
        options = self._draw_options(rng, cells, self.space.layers)
        present = np.arange(self.space.layers)[None, :] < depths[:, None]
        layer = np.take_along_axis(self._layer[cells], options[:, :, None], axis=1)
        total = self._fixed[cells] + (layer * present[:, :, None]).sum(1)
        reaches = (np.take_along_axis(self._table.reaches[cells], options, axis=1) & present).any(1)
        drawn = np.flatnonzero(self._accepted(total, rng) & reaches)
        built = (self._build(int(cells[i]), options[i, present[i]], rng) for i in drawn)
        return (arch for arch in built if self.budget.admits(self.space.base, arch))

    def _pair_halves(self, rng: np.random.Generator) -> Architecture:
        """One member of a rare budget: each of thousands of first halves with every second half that completes it.

        Close to the wanted distribution: exact within a cell and depth, whose shares are those of the tilt.
        """
        for _ in range(_ROUNDS):
            cell, depth = (int(drawn[0]) for drawn in self._draw_cells(rng, 1))
            cells = np.full(_HALVES, cell)
            first, second = (self._draw_options(rng, cells, n) for n in (depth - depth // 2, depth // 2))
            left = self._fixed[cell] + self._layer[cell][first].sum(1)
            right = self._layer[cell][second].sum(1)
            order = np.argsort(right[:, 0])
            begin = np.searchsorted(right[order, 0], self._low[0] - 1e-9 - left[:, 0], "left")
            end = np.searchsorted(right[order, 0], self._high[0] + 1e-9 - left[:, 0], "right")
            matches = np.cumsum(np.maximum(end - begin, 0))
            if not matches[-1]:
                continue
            picks = rng.integers(matches[-1], size=_HALVES)
            a = np.searchsorted(matches, picks, "right")
            b = order[end[a] - (matches[a] - picks)]
            options = np.concatenate([first[a], second[b]], axis=1)
            reaches = self._table.reaches[cell][options].any(1)
            for i in np.flatnonzero(self._accepted(left[a] + right[b], rng) & reaches):
                arch = self._build(cell, options[i], rng)
                if self.budget.admits(self.space.base, arch):
                    return arch
        tried = f"{_MOST_PROPOSALS:,} targeted draws and {_ROUNDS} times {_HALVES:,} x {_HALVES:,} pairs of halves"
        raise UserError(self._unmet(tried))

    def _unmet(self, why: str) -> str:
        """That nothing meets the limits, where one alone is impossible that one, else all."""
        alone = {
            name: limit
            for j, (name, limit) in enumerate(self._limits.items())
            if not self._table.part(j).possible(self._depths, np.array([limit[0]]), np.array([limit[1]])).any()
        }
        limits = ", ".join(
            f"{low:,.0f} <= {name} <= {high:,.0f}" for name, (low, high) in (alone or self._limits).items()
        )
        return f"budget: no architecture of the space meets {limits} ({why})"

    def _build(self, cell: int, options: np.ndarray, rng: np.random.Generator) -> Architecture:
        kept = self.space.sample_subset(len(options), rng)
        specs = [self._table.specs[cell][option] for option in options]
        return self.space.build(self._table.hidden_sizes[cell], dict(zip(kept, specs, strict=True)))


@lru_cache(maxsize=64)
def _cached_sampler(space: SearchSpace, budget: Budget | None) -> BudgetSampler:
    return BudgetSampler(space, budget)


def sample(space: SearchSpace, rng: np.random.Generator, budget: Budget | None = None) -> Architecture:
    """One architecture of the space within the budget; see `BudgetSampler`."""
    return _cached_sampler(space, budget).sample(rng)


def bands(space: SearchSpace, budget: Budget | None, count: int) -> list[Budget]:
    """Cut the reachable parameter range of the budget into `count` bands of equal width.

    Raises:
        UserError: nothing of the space is in that range.
    """
    budget = budget or Budget()
    least, most = reachable(space, "params", budget.workload)
    if (budget.max_params or math.inf) < least or (budget.min_params or 0) > most:
        BudgetSampler(space, budget)  # says which limit it is
    low, high = max(least, budget.min_params or 0), min(most, budget.max_params or math.inf)
    edges = np.linspace(low, high, count + 1)
    return [
        replace(budget, min_params=max(1, math.floor(a)), max_params=math.ceil(b))
        for a, b in itertools.pairwise(edges.tolist())
    ]
