"""The program's optimum against brute force; costs against the closed forms; when additivity fails."""

from collections.abc import Sequence

import numpy as np
import pytest
from toy_problem import SPACE, members, val_loss

from llmnas.cost import Budget, Workload, costs
from llmnas.errors import RunError, UserError
from llmnas.search.block_scores import additivity
from llmnas.search.mip import (
    Limit,
    budget_limits,
    cells,
    closed_form,
    measured_costs,
    replace_one,
    solve,
)
from llmnas.space import Architecture, LayerSpec, SearchSpace

BASE = SPACE.base
WORKLOAD = Workload(batch=2, context=32)


def space_of(policy: str, choices: Sequence[int], layers: int = 3) -> SearchSpace:
    return SearchSpace.from_dict(
        {
            "base": {"vocab_size": 64},
            "layers": layers,
            "hidden_size": [32, 48],
            "depth": {"choices": list(choices), "policy": policy},
            "kv_heads": {"choices": [1, 2], "per_layer": True},
            "queries_per_group": [1, 2],
            "head_dim": [8],
            "ffn_size": {"choices": [16, 64, 128], "per_layer": True},
        }
    )


SPACES = [space_of("any", [1, 2, 3]), space_of("keep_ends", [2, 3]), space_of("even", [1, 3]), space_of("any", [2])]


def block_score(layer: int, spec: LayerSpec | None) -> float:
    """Arbitrary numbers that no two blocks share."""
    if spec is None:
        return 0.31 * (layer + 1)
    return float(np.sin(7 * layer + 3 * spec.kv_heads + 0.37 * spec.ffn_size + spec.queries_per_group)) - 0.1 * layer


def total_score(arch: Architecture) -> float:
    return sum(block_score(i, spec) for i, spec in enumerate(arch.layers))


def best_members(space: SearchSpace, budget: Budget, count: int) -> list[float]:
    return sorted(total_score(a) for a in members(space) if budget.admits(space.base, a))[:count]


BUDGETS = [
    Budget(),
    Budget(max_params=30_000),
    Budget(max_params=30_000, min_params=24_000),
    Budget(max_flops_per_token=50_000, workload=WORKLOAD),
    Budget(max_memory_bytes=90_000, workload=WORKLOAD),
    Budget(max_params=34_000, max_memory_bytes=95_000, workload=WORKLOAD),
]


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda b: "-".join(b.limits()) or "free")
@pytest.mark.parametrize("space", SPACES, ids=["any", "keep_ends", "even", "depth_2"])
def test_the_optimum_is_the_best_of_all_members(space, budget):
    expected = best_members(space, budget, 3)
    if not expected:
        with pytest.raises(UserError, match="no architecture"):
            solve(space, block_score, budget_limits(space, budget))
        return
    found = solve(space, block_score, budget_limits(space, budget), count=3)
    assert [s.score for s in found] == pytest.approx(expected)
    assert len({s.arch for s in found}) == len(found)
    for solution in found:
        assert space.contains(solution.arch)
        assert budget.admits(space.base, solution.arch)
        assert solution.score == pytest.approx(total_score(solution.arch))


@pytest.mark.parametrize("name", ["params", "flops_per_token", "memory_bytes"])
def test_closed_forms_over_blocks_are_exact(name):
    space = SPACES[0]
    table = {cell: closed_form(space, cell, name, WORKLOAD) for cell in cells(space)}
    for arch in members(space)[::7]:
        specs = {spec for spec in arch.layers if spec}
        (cell,) = (c for c in table if c.hidden_size == arch.hidden_size and specs <= set(c.options))
        choice = [cell.options.index(spec) for spec in arch.layers]
        assert table[cell].total(choice) == pytest.approx(costs(arch, space.base, WORKLOAD)[name])


def test_a_measured_table_of_blocks_is_a_limit():
    space = SPACES[0]

    def latency(layer: int, spec: LayerSpec | None) -> float:
        return 1.0 + spec.ffn_size / 100 + 0.1 * layer

    limit = Limit("latency_ms", lambda cell: measured_costs(space, cell, 2.0, latency), high=5.0)
    fits = [total_score(a) for a in members(space) if 2.0 + sum(latency(i, spec) for i, spec in a.kept) <= 5.0]
    (found,) = solve(space, block_score, [limit])
    assert found.score == pytest.approx(min(fits))


def additive(archs: Sequence[Architecture]) -> list[dict[str, float]]:
    return [{"val_loss": 3.0 + total_score(arch)} for arch in archs]


def test_replace_one_recovers_scores_that_are_additive_and_finds_the_optimum():
    space = SPACES[0]
    parent = space.largest()
    table = replace_one(space, parent, additive, "val_loss")
    own = {spec.queries_per_group for spec in parent.layers}
    assert all(
        value == pytest.approx(block_score(i, spec) - block_score(i, parent.layers[i]))
        for (i, spec), value in table.items()
    )
    (found,) = solve(
        space, lambda i, spec: table[i, spec], [],
        only=lambda cell: cell.hidden_size == parent.hidden_size and cell.options[1].queries_per_group in own,
    )  # fmt: skip
    inside = [a for a in members(space) if a.hidden_size == 48 and {s.queries_per_group for _, s in a.kept} == own]
    assert total_score(found.arch) == pytest.approx(min(total_score(a) for a in inside))
    (value,) = additive([parent])
    verdict = additivity(
        lambda i, spec: table[i, spec], value["val_loss"], inside[::5], [r["val_loss"] for r in additive(inside[::5])]
    )
    assert verdict.holds
    assert verdict.rmse < 1e-9
    assert "additive enough" in verdict.message()


def test_says_when_scores_do_not_add_up():
    space = SPACES[0]
    parent = space.largest()

    def parity(archs: Sequence[Architecture]) -> list[dict[str, float]]:
        """What one block is worth depends on all the others."""
        return [{"val_loss": float(sum(spec.ffn_size == 16 for _, spec in arch.kept) % 2)} for arch in archs]

    table = replace_one(space, parent, parity, "val_loss")
    archs = [a for a in members(space) if a.hidden_size == 48 and all(s.queries_per_group == 2 for _, s in a.kept)]
    verdict = additivity(lambda i, spec: table[i, spec], 0.0, archs, [r["val_loss"] for r in parity(archs)])
    assert not verdict.holds
    assert "do NOT add up" in verdict.message()


def test_the_toy_problem_is_nearly_additive():
    space = SPACE.model_copy(update={"depth": SPACE.depth.model_copy(update={"choices": (4,)})})
    parent = space.largest()
    table = replace_one(space, parent, lambda archs: [{"val_loss": val_loss(a)} for a in archs], "val_loss")
    same = [a for a in members(space) if a.hidden_size == 96 and {s.q_heads * s.head_dim for _, s in a.kept} == {64}]
    verdict = additivity(lambda i, spec: table[i, spec], val_loss(parent), same, [val_loss(a) for a in same])
    assert verdict.holds


def test_bad_input_is_named():
    space = SPACES[0]
    with pytest.raises(UserError, match=r"no architecture of the chosen cells meets .* params"):
        solve(space, block_score, budget_limits(space, Budget(max_params=10)))
    with pytest.raises(UserError, match="skips a layer"):
        replace_one(space, space.smallest(), additive, "val_loss")
    with pytest.raises(RunError, match=r"val_loss of .* not finite"):
        replace_one(space, space.largest(), lambda archs: [{"val_loss": float("nan")}] * len(archs), "val_loss")
    with pytest.raises(UserError, match="upper limit only"):
        solve(space, block_score, budget_limits(space, Budget(min_memory_bytes=10)))
    with pytest.raises(UserError, match="at least three"):
        additivity(block_score, 0.0, [], [])
