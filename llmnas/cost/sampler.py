"""Drawing architectures under a budget, exactly and without stalling.

`SearchSpace.sample` conditioned on the budget is the wanted distribution. Plain rejection
needs 1 / P(budget) tries. Every cost is a constant of the hidden size plus a sum over the
kept layers, so the space can be tilted exponentially: drawing a with probability
q(a) ~ mu(a) exp(-sum_j t_j c_j(a)) stays a product over layers, and accepting it with
probability exp(sum_j t_j (c_j(a) - r_j)), r_j the limit that t_j pushes towards, restores
mu exactly (Siegmund 1976, importance sampling by exponential change of measure). The best
tilt minimises the Chernoff bound log Z(t) + sum_j t_j r_j, which is convex.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from llmnas.cost.budget import Budget, costs
from llmnas.cost.flops import head_flops, layer_flops
from llmnas.cost.memory import layer_activation_values, layer_kv_values
from llmnas.cost.params import embedding_params, layer_params
from llmnas.errors import UserError
from llmnas.space import DIMENSIONS, Architecture, LayerSpec, SearchSpace

_CHUNK = 64
_MOST_PROPOSALS = 200_000


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
        self._check_reachable()
        self._tabulate()
        self._tilt = self._best_tilt()
        self._prepare()

    def sample(self, rng: np.random.Generator) -> Architecture:
        """One architecture within the budget."""
        return self.sample_many(rng, 1)[0]

    def sample_many(self, rng: np.random.Generator, count: int) -> list[Architecture]:
        """`count` independent architectures within the budget."""
        if not self._limits:
            return [self.space.sample(rng) for _ in range(count)]
        found: list[Architecture] = []
        proposals = 0
        broken: dict[str, int] = {}
        while len(found) < count:
            if proposals > _MOST_PROPOSALS and not found:
                limits = ", ".join(f"{low:,.0f} <= {name} <= {high:,.0f}" for name, (low, high) in self._limits.items())
                worst = f"; {max(broken, key=lambda name: broken[name])} failed most often" if broken else ""
                raise UserError(
                    f"budget: no architecture of the space meets {limits} ({proposals:,} targeted draws){worst}"
                )
            for arch in self._propose(rng):
                missed = self.budget.broken(self.space.base, arch)
                if not missed:
                    found.append(arch)
                for name in missed:
                    broken[name] = broken.get(name, 0) + 1
            proposals += _CHUNK
        return found[:count]

    def feasible(self, rng: np.random.Generator) -> bool:
        """Whether any architecture meets the budget, as far as targeted draws can tell."""
        try:
            self.sample(rng)
        except UserError:
            return False
        return True

    def _check_reachable(self) -> None:
        """Costs grow with every size, so the extremes of the space bound each of them."""
        base, workload = self.space.base, self.budget.workload
        least = costs(self.space.smallest(), base, workload)
        most = costs(self.space.largest(), base, workload)
        for name, (low, high) in self._limits.items():
            if high < least[name]:
                raise UserError(
                    f"budget: max_{name} = {high:,.0f}, but the smallest architecture has {least[name]:,.0f}"
                )
            if low > most[name]:
                raise UserError(f"budget: min_{name} = {low:,.0f}, but the largest architecture has {most[name]:,.0f}")

    def _fixed(self, name: str, hidden_size: int) -> float:
        base = self.space.base
        if name == "flops_per_token":
            return head_flops(base, hidden_size)
        stored = embedding_params(base, hidden_size) + hidden_size
        if name == "params":
            return stored
        return self.budget.workload.bytes_per_value * stored + self._activation_bytes(hidden_size, min)

    def _layer(self, name: str, hidden_size: int, spec: LayerSpec) -> float:
        base, workload = self.space.base, self.budget.workload
        if name == "flops_per_token":
            return layer_flops(hidden_size, spec, (workload.tokens(base) + 1) / 2)
        if name == "params":
            return layer_params(base, hidden_size, spec)
        kv_values = workload.batch * workload.tokens(base) * layer_kv_values(spec)
        return workload.bytes_per_value * (layer_params(base, hidden_size, spec) + kv_values)

    def _activation_bytes(self, hidden_size: int, pick: Callable[[tuple[int, ...]], int]) -> float:
        """Activations are a maximum over layers, not a sum: in the tilt they stand as a bound from the safe side."""
        base, workload = self.space.base, self.budget.workload
        spec = LayerSpec(**{name: pick(self.space.dimension(name).choices) for name in DIMENSIONS})
        values = workload.tokens(base) * layer_activation_values(hidden_size, spec)
        return workload.bytes_per_value * workload.batch * max(values, base.vocab_size)

    def _tabulate(self) -> None:
        """Costs in units of the limit, [cells, costs] and [cells, options, costs].

        A cell is (hidden size, shared sizes); an option is one setting of a layer's own sizes.
        """
        space, names = self.space, list(self._limits)
        self._options = list(space.settings(space.layer_dimensions))
        self._cells = [(h, shared) for h in space.hidden_size for shared in space.settings(space.shared_dimensions)]
        finite = [high if math.isfinite(high) else low for low, high in self._limits.values()]
        self._unit = np.array(finite)
        fixed = [[self._fixed(name, h) for name in names] for h, _ in self._cells]
        layer = [
            [[self._layer(name, h, LayerSpec(**shared, **own)) for name in names] for own in self._options]
            for h, shared in self._cells
        ]
        self._fixed_costs = np.array(fixed) / self._unit
        self._layer_costs = np.array(layer) / self._unit
        low = np.array([pair[0] for pair in self._limits.values()])
        high = np.array([pair[1] for pair in self._limits.values()])
        widest = self._activation_bytes(max(space.hidden_size), max)
        slack = [widest if name == "memory_bytes" else 0.0 for name in names]
        self._low, self._high = (low - np.array(slack)) / self._unit, high / self._unit
        self._depths = np.array(space.depth.choices)

    def _log_weights(self, tilt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(log weight of every (cell, depth), log weight of every option in a cell) under a tilt [costs]."""
        option = -self._layer_costs @ tilt - math.log(len(self._options))
        per_layer = logsumexp(option, axis=1)
        cell = -(self._fixed_costs @ tilt)[:, None] + self._depths[None, :] * per_layer[:, None]
        return cell, option

    def _best_tilt(self) -> np.ndarray:
        """Minimise log Z(t) + sum t+ high - sum t- low over t = t+ - t-, both parts >= 0."""
        n = len(self._unit)
        open_above, open_below = np.isinf(self._high), np.isinf(self._low)
        high, low = np.where(open_above, 0, self._high), np.where(open_below, 0, self._low)
        bounds = [(0, 0 if open_ else 1e5) for open_ in (*open_above, *open_below)]

        def bound(parts: np.ndarray) -> tuple[float, np.ndarray]:
            tilt = parts[:n] - parts[n:]
            cell, option = self._log_weights(tilt)
            total = float(logsumexp(cell))
            p_cell = np.exp(cell - total)
            p_option = np.exp(option - logsumexp(option, axis=1, keepdims=True))
            layer_mean = np.einsum("co,coj->cj", p_option, self._layer_costs)
            mean = p_cell.sum(1) @ self._fixed_costs + (p_cell @ self._depths) @ layer_mean
            value = total + float(parts[:n] @ high - parts[n:] @ low)
            return value, np.concatenate([high - mean, mean - low])

        best = minimize(bound, np.zeros(2 * n), jac=True, bounds=bounds, method="L-BFGS-B")
        return np.asarray(best.x[:n] - best.x[n:])

    def _prepare(self) -> None:
        cell, option = self._log_weights(self._tilt)
        p_cell = np.exp(cell - logsumexp(cell)).ravel()
        self._cell_cdf = np.cumsum(p_cell)
        self._option_cdf = np.cumsum(np.exp(option - logsumexp(option, axis=1, keepdims=True)), axis=1)
        reference = np.where(self._tilt > 0, self._high, self._low)
        self._reference = np.where(self._tilt == 0, 0, reference)

    def _propose(self, rng: np.random.Generator) -> list[Architecture]:
        """A chunk of tilted draws, thinned to `space.sample`'s distribution within the tilted limits."""
        cells = np.searchsorted(self._cell_cdf, rng.random(_CHUNK) * self._cell_cdf[-1])
        cells, depths = np.divmod(cells, len(self._depths))
        draws = rng.random((_CHUNK, self.space.layers))
        cdf = self._option_cdf[cells]
        options = (draws[:, :, None] * cdf[:, None, -1:] > cdf[:, None, :]).sum(2)
        present = np.arange(self.space.layers)[None, :] < self._depths[depths][:, None]
        layer = np.take_along_axis(self._layer_costs[cells], options[:, :, None], axis=1)
        total = self._fixed_costs[cells] + (layer * present[:, :, None]).sum(1)
        accept = np.exp(np.minimum((total - self._reference) @ self._tilt, 0)) > rng.random(_CHUNK)
        inside = ((total <= self._high + 1e-9) & (total >= self._low - 1e-9)).all(1)
        return [self._build(int(cells[i]), options[i, present[i]], rng) for i in np.flatnonzero(accept & inside)]

    def _build(self, cell: int, options: np.ndarray, rng: np.random.Generator) -> Architecture:
        hidden_size, shared = self._cells[cell]
        kept = self.space.sample_subset(len(options), rng)
        specs = [LayerSpec(**shared, **self._options[option]) for option in options]
        return self.space.build(hidden_size, dict(zip(kept, specs, strict=True)))


@lru_cache(maxsize=64)
def _cached_sampler(space: SearchSpace, budget: Budget | None) -> BudgetSampler:
    return BudgetSampler(space, budget)


def sample(space: SearchSpace, rng: np.random.Generator, budget: Budget | None = None) -> Architecture:
    """One architecture of the space within the budget; see `BudgetSampler`."""
    return _cached_sampler(space, budget).sample(rng)


def bands(space: SearchSpace, budget: Budget | None, count: int) -> list[Budget]:
    """Cut the reachable parameter range of the budget into `count` bands of equal width."""
    budget = budget or Budget()
    base = space.base
    low = max(costs(space.smallest(), base)["params"], budget.min_params or 0)
    high = min(costs(space.largest(), base)["params"], budget.max_params or math.inf)
    edges = np.linspace(low, high, count + 1)
    return [
        replace(budget, min_params=max(1, math.floor(a)), max_params=math.ceil(b))
        for a, b in itertools.pairwise(edges.tolist())
    ]
