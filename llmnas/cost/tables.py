"""The costs of a whole space as arrays: constants of a cell plus a sum over layers.

A cell fixes everything that is not a layer's own: the hidden size, the shared dimensions and, where memory
is counted, the widest activations `cap` that a layer may have (memory takes the maximum over layers, not their
sum; an architecture belongs to the cell whose cap one of its layers reaches).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmnas.cost.flops import head_flops, layer_flops
from llmnas.cost.memory import Workload, activation_bytes, layer_cache_values, layer_weight_bytes
from llmnas.cost.params import embedding_params, idle_params, layer_params
from llmnas.space import LayerSpec, SearchSpace


@dataclass(frozen=True)
class CostTable:
    """What `tabulate` found.

    Attributes:
        hidden_sizes: [cells].
        specs: [cells][options], what a layer may be; the options of a layer's own choices, repeats included.
        fixed: [cells, costs] outside of the layers, the activations of the cell's cap included.
        layer: [cells, options, costs].
        fits: [cells, options] whether the option stays within the cell's cap.
        reaches: [cells, options] whether it is as wide as the cap; one layer at least must be.
    """

    hidden_sizes: list[int]
    specs: list[list[LayerSpec]]
    fixed: np.ndarray
    layer: np.ndarray
    fits: np.ndarray
    reaches: np.ndarray

    def least(self, depth: int) -> np.ndarray:
        """The least of every cost at the least depth, `[costs]`: exact, since the best layer is best everywhere."""
        layer = np.where(self.fits[:, :, None], self.layer, np.inf)
        return np.asarray((self.fixed + depth * layer.min(1)).min(0))

    def most(self, depth: int) -> np.ndarray:
        """The greatest of every cost at the greatest depth, `[costs]`: exact."""
        widest = np.where(self.reaches[:, :, None], self.layer, -np.inf).max(1)
        others = np.where(self.fits[:, :, None], self.layer, -np.inf).max(1)
        return np.asarray((self.fixed + widest + (depth - 1) * others).max(0))

    def part(self, cost: int) -> CostTable:
        """The table of one of the costs alone."""
        return replace(self, fixed=self.fixed[:, cost : cost + 1], layer=self.layer[:, :, cost : cost + 1])

    def possible(self, depths: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Which `[cells, depths]` may have members with every cost in [low, high] (`[costs]` each).

        False is a proof. The costs of a cell at one depth are the cheapest layer times the depth plus multiples of what
        all differences between its layers have in common (parameters come in whole rows), none beyond the dearest.
        """
        found = np.ones((len(self.fixed), len(depths)), dtype=bool)
        for j in range(self.fixed.shape[1]):
            layer = np.where(self.fits, self.layer[:, :, j], np.nan)
            cheapest, dearest = np.nanmin(layer, 1, keepdims=True), np.nanmax(layer, 1, keepdims=True)
            least, most = (self.fixed[:, j : j + 1] + depths * ends for ends in (cheapest, dearest))
            above = np.nan_to_num(layer - cheapest)
            whole = np.array_equal(above, np.rint(above)) and above.max() < 2**53
            step = np.gcd.reduce(above.astype(np.int64), axis=1, keepdims=True) if whole else np.zeros_like(cheapest)
            missing = np.maximum(low[j] - least, 0)
            nearest = least + np.where(step > 0, np.ceil(missing / np.maximum(step, 1)) * step, missing)
            found &= nearest <= np.minimum(most, high[j]) * (1 + 1e-9)  # sums of fractions differ by their rounding
        return found


def tabulate(space: SearchSpace, names: Sequence[str], workload: Workload) -> CostTable:
    """The named costs (of `COSTS`) of everything in the space under a workload."""
    own = list(space.settings(space.layer_dimensions))
    cells: list[tuple[int, list[LayerSpec], float]] = []
    for hidden_size in space.hidden_size:
        for shared in space.settings(space.shared_dimensions):
            specs = [LayerSpec(**shared, **setting) for setting in own]
            widths = {_activation(space, names, hidden_size, spec, workload) for spec in specs}
            cells += [(hidden_size, specs, cap) for cap in sorted(widths)]
    widths_of = np.array([[_activation(space, names, h, spec, workload) for spec in specs] for h, specs, _ in cells])
    caps = np.array([[cap] for _, _, cap in cells])
    return CostTable(
        hidden_sizes=[hidden_size for hidden_size, _, _ in cells],
        specs=[specs for _, specs, _ in cells],
        fixed=np.array([[_fixed(space, name, h, cap, workload) for name in names] for h, _, cap in cells]),
        layer=np.array([[[_layer(space, n, h, s, workload) for n in names] for s in specs] for h, specs, _ in cells]),
        fits=widths_of <= caps,
        reaches=widths_of == caps,
    )


def reachable(space: SearchSpace, name: str, workload: Workload) -> tuple[float, float]:
    """The least and the greatest value of one cost in the space."""
    table = tabulate(space, [name], workload)
    return float(table.least(space.depth.choices[0])[0]), float(table.most(space.depth.choices[-1])[0])


def _activation(
    space: SearchSpace, names: Sequence[str], hidden_size: int, spec: LayerSpec, workload: Workload
) -> float:
    return activation_bytes(space.base, hidden_size, spec, workload) if "memory_bytes" in names else 0.0


def _fixed(space: SearchSpace, name: str, hidden_size: int, cap: float, workload: Workload) -> float:
    if name == "flops_per_token":
        return head_flops(space.base, hidden_size)
    stored = embedding_params(space.base, hidden_size) + hidden_size
    return stored if name in {"params", "active_params"} else workload.bytes_per_value * stored + cap


def _layer(space: SearchSpace, name: str, hidden_size: int, spec: LayerSpec, workload: Workload) -> Any:
    base = space.base
    if name == "flops_per_token":
        return layer_flops(hidden_size, spec, (workload.tokens(base) + 1) / 2)
    if name == "params":
        return layer_params(base, hidden_size, spec)
    if name == "active_params":
        return layer_params(base, hidden_size, spec) - idle_params(hidden_size, spec)
    cache = workload.bytes_per_value * layer_cache_values(spec, workload, base)
    return layer_weight_bytes(base, hidden_size, spec, workload) + cache
