"""The best of all cells against brute force."""

import numpy as np
import pytest
from toy_problem import SPACE, members, params

from llmnas.cost import Budget, Workload
from llmnas.search.block_model import BlockLayout
from llmnas.search.cell_programs import CellPrograms
from llmnas.search.mip import BlockCosts, Cell, Limit, budget_limits, closed_form
from llmnas.space import Architecture

SMALL = SPACE.model_copy(update={"hidden_size": (32, 64), "layers": 3, "depth": SPACE.depth.model_copy(
    update={"choices": (2, 3)})})  # fmt: skip
LAYOUT = BlockLayout(SMALL)
RNG = np.random.default_rng(5)
TABLES = {
    cell: BlockCosts(RNG.normal(), RNG.normal(size=(3, len(cell.options))), np.zeros((3, len(cell.options))))
    for cell in LAYOUT.cells
}
SCORES = {}
for arch in members(SMALL):
    (c,), (choice,) = LAYOUT.encode([arch])
    SCORES[arch] = TABLES[LAYOUT.cells[c]].total(choice)


def table(cell: Cell) -> BlockCosts:
    return TABLES[cell]


def programs(known: list[Architecture], sign: float = 1.0) -> CellPrograms:
    found = CellPrograms(SMALL, LAYOUT, lambda arch: arch not in known)
    found.know(known)
    found.score(table, sign)
    return found


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("ends", [(-np.inf, np.inf), (-np.inf, 20_000.0), (24_000.0, 28_000.0), (30_000.0, np.inf)])
def test_the_best_of_all_cells_within_limits_and_the_next(ends, sign):
    low, high = ends
    limits = [Limit("params", lambda cell: closed_form(SMALL, cell, "params", Workload()), low, high)]
    limits = limits if np.isfinite(ends).any() else []
    ranked = sorted((a for a in SCORES if low <= params(a) <= high), key=lambda a: sign * SCORES[a])
    assert programs([], sign).best(limits, passing=False) == ranked[0]
    for count in (1, 3, 20):
        known = programs(ranked[:count], sign)
        assert known.best(limits, passing=False) is None
        assert known.best(limits, passing=True) == ranked[count]
        assert known.best(limits, passing=True) == ranked[count]  # from the programs that are kept


def test_bounds_are_below_what_cells_have():
    budget = Budget(max_params=18_000, max_memory_bytes=800_000)
    bounds = programs([])._bounds(budget_limits(SMALL, budget))
    assert np.isinf(bounds).any()
    best = np.full(len(bounds), np.inf)
    for arch, value in SCORES.items():
        if budget.admits(SMALL.base, arch):
            c = LAYOUT.encode([arch])[0][0]
            best[c] = min(best[c], value)
    assert (bounds <= best + 1e-9).all()
    assert np.isfinite(best).any()


def test_nothing_within_the_limits():
    limits = [Limit("params", lambda cell: closed_form(SMALL, cell, "params", Workload()), 9.0, 7.0)]
    assert programs([]).best(limits, passing=True) is None
