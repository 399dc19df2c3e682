"""Parents and replacements within limits, against all members."""

from pathlib import Path

import pytest
from toy_problem import members

from llmnas.cost import Budget, count_params
from llmnas.search.block_scores import largest_within, parent_of, replacement
from llmnas.search.mip import budget_limits, cells
from llmnas.space import SearchSpace

SPACE = SearchSpace.from_dict(
    {
        "base": {"vocab_size": 64},
        "layers": 4,
        "hidden_size": [32, 48],
        "depth": [2, 4],
        "kv_heads": {"choices": [1, 2], "per_layer": True},
        "queries_per_group": 1,
        "head_dim": 8,
        "ffn_size": {"choices": [16, 64], "per_layer": True},
    }
)
CONFIGS = Path(__file__).parents[2] / "search_configs"
FREE, TIGHT = Budget(), Budget(max_params=22_000)


def even(space: SearchSpace) -> SearchSpace:
    return space.model_copy(update={"depth": space.depth.model_copy(update={"policy": "even"})})


@pytest.mark.parametrize("budget", [FREE, TIGHT], ids=["free", "tight"])
@pytest.mark.parametrize("space", [SPACE, even(SPACE)], ids=["any", "even"])
def test_replacements_have_the_block_and_are_nearest_to_a_largest_parent(space, budget):
    limits = budget_limits(space, budget)
    for cell in cells(space):
        inside = [
            a
            for a in members(space)
            if a.hidden_size == cell.hidden_size and {*a.layers} <= {*cell.options} and budget.admits(space.base, a)
        ]
        size = {a: count_params(a, space.base).total for a in inside}
        parent = largest_within(space, cell, limits)
        assert size[parent] == max(size.values())
        for layer in range(space.layers):
            for spec in cell.options:
                having = [a for a in inside if a.layers[layer] == spec]
                found = replacement(space, cell, parent, (layer, spec), limits)
                if not having:
                    assert found is None
                    continue

                def changes(arch, layer=layer, parent=parent):
                    pairs = zip(arch.layers, parent.layers, strict=True)
                    return sum(mine != its for i, (mine, its) in enumerate(pairs) if i != layer)

                assert found in having
                least = min(map(changes, having))
                assert changes(found) == least
                if least:
                    assert size[found] == max(size[a] for a in having if changes(a) == least)


def test_without_limits_the_parent_is_that_of_a_table():
    for cell in cells(SPACE):
        assert largest_within(SPACE, cell, []) == parent_of(SPACE, cell)
    assert largest_within(SPACE, cells(SPACE)[1], budget_limits(SPACE, Budget(max_params=1))) is None


@pytest.mark.parametrize(("layers", "found"), [(1, False), (2, True)])
def test_the_only_layer_of_a_parent_is_never_just_left_out(layers, found):
    space = SPACE.model_copy(update={"layers": layers, "depth": SPACE.depth.model_copy(update={"choices": (1,)})})
    for cell in cells(space):
        parent = largest_within(space, cell, [])
        (kept,) = (i for i, _ in parent.kept)
        other = replacement(space, cell, parent, (kept, None), [])
        assert (other is not None) == found
        assert other is None or (other.depth == 1 and other.layers[kept] is None)


def test_many_equal_layers_take_no_proof_that_nothing_is_larger():
    """Where a sum of 18 layers comes within a thousandth of the limit, a program does not end for minutes."""
    space = SearchSpace.from_yaml(CONFIGS / "gpt_125m.yaml")
    budget = Budget(max_params=122_787_904)
    found = largest_within(space, cells(space)[-1], budget_limits(space, budget))
    assert 0.999 * budget.max_params < count_params(found, space.base).total <= budget.max_params
