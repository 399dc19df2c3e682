"""Programs on learned scores: optimal where the metric adds up, members of the space and budget always."""

import logging
from collections.abc import Sequence

import numpy as np
import pytest
from toy_problem import LIGHT, SPACE, TWO, measure, members, params, val_loss

from llmnas.cost import Budget
from llmnas.errors import UserError
from llmnas.pareto import Evaluation, front
from llmnas.search import Problem, search
from llmnas.search.mip_search import MipOptions, MipSearch
from llmnas.space import Architecture, SearchSpace


def space_of(policy: str, depth: Sequence[int]) -> SearchSpace:
    return SearchSpace.from_dict(
        {
            "base": {"vocab_size": 64},
            "layers": 4,
            "hidden_size": [32, 48],
            "depth": {"choices": list(depth), "policy": policy},
            "kv_heads": 1,
            "queries_per_group": [1, 2],
            "head_dim": 8,
            "ffn_size": {"choices": [16, 64, 128], "per_layer": True},
        }
    )


SPACES = {"any": space_of("any", [2, 3, 4]), "no skip alone": space_of("any", [2, 4]), "even": space_of("even", [2, 4])}


def additive(archs: Sequence[Architecture]) -> list[dict[str, float]]:
    """Arbitrary scores of blocks, other ones in every cell and layer."""
    rows = []
    for arch in archs:
        shared = arch.hidden_size / 16 + next(spec.queries_per_group for _, spec in arch.kept)
        sizes = [0 if spec is None else spec.ffn_size for spec in arch.layers]
        loss = 9.0 - 0.1 * shared + sum(np.sin(3 * i + 0.1 * size + shared) for i, size in enumerate(sizes))
        rows.append({"val_loss": float(loss), "params": params_of(arch)})
    return rows


def params_of(arch: Architecture) -> float:
    return params(arch)  # the same base model as the toy problem's


def run(space: SearchSpace, budget: Budget | None, objectives, asks: int, seed: int = 0):
    """(strategy, [(what was asked, whether it is a solution of a program)]) after so many asks of eight."""
    strategy = MipSearch(Problem.of(space, objectives, {}, budget, seed), MipOptions())
    asked = []
    for _ in range(asks):
        batch = strategy.ask(8)
        asked.append(batch)
        strategy.tell([Evaluation(a, m) for a, m in zip(batch, additive(batch), strict=True)])
    return strategy, asked


@pytest.mark.parametrize("budget", [None, Budget(max_params=26_000)], ids=["free", "budget"])
@pytest.mark.parametrize("name", SPACES)
def test_where_scores_add_up_every_program_is_solved_to_its_optimum_once_blocks_are_scored(name, budget):
    space = SPACES[name]
    loss = {
        arch: row["val_loss"]
        for arch, row in zip(members(space), additive(members(space)), strict=True)
        if budget is None or budget.admits(space.base, arch)
    }
    strategy, asked = run(space, budget, TWO, 1)
    free = set(loss) - set(asked[0])
    scored = 0
    while scored < 3 and free:
        learned = next(strategy._replacements, None) is None
        batch = strategy.ask(8)
        assert set(batch) <= free
        free -= set(batch)
        if learned and name != "even":  # two subsets of layers do not tell what each layer is worth
            scored += 1
            for arch in batch:
                better = [a for a in free if params(a) <= params(arch) and loss[a] < loss[arch] - 0.02]
                assert not better
        strategy.tell([Evaluation(a, m) for a, m in zip(batch, additive(batch), strict=True)])
    assert free
