"""Mutation and crossover stay in the space, change what they say, and reach all of it."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import brute_size, members_with_probability, spaces, spaces_with_members

from llmnas.space import DIMENSIONS, SearchSpace, crossover, mutate

SEEDS = st.integers(0, 2**32 - 1)


def sparse(policy, choices, layers=6):
    return SearchSpace.from_dict(
        {
            "base": {"vocab_size": 10},
            "layers": layers,
            "hidden_size": 8,
            "depth": {"choices": choices, "policy": policy},
            "kv_heads": 1,
            "queries_per_group": 1,
            "head_dim": 4,
            "ffn_size": {"choices": [8, 16], "per_layer": True},
        }
    )


@given(spaces_with_members(max_layers=6, most_choices=3), SEEDS)
@settings(max_examples=200)
def test_a_mutation_changes_one_decision_within_the_space(case, seed):
    space, arch = case
    child = mutate(space, arch, np.random.default_rng(seed))
    assert space.contains(child)
    assert (child == arch) == (space.size() == 1)
    subset_changed = [i for i, _ in child.kept] != [i for i, _ in arch.kept]
    shared_changed = [
        name for name in space.shared_dimensions if getattr(child.kept[0][1], name) != getattr(arch.kept[0][1], name)
    ]
    own_changed = [
        (i, name)
        for i, (old, new) in enumerate(zip(arch.layers, child.layers, strict=True))
        for name in space.layer_dimensions
        if not subset_changed and old and new and getattr(old, name) != getattr(new, name)
    ]
    changes = [child.hidden_size != arch.hidden_size, subset_changed, *shared_changed, *own_changed]
    assert sum(map(bool, changes)) == (space.size() > 1)


@given(spaces_with_members(members=2, max_layers=6, most_choices=3), SEEDS)
@settings(max_examples=200)
def test_a_child_takes_every_decision_from_a_parent(case, seed):
    space, a, b = case
    child = crossover(space, a, b, np.random.default_rng(seed))
    assert space.contains(child)
    assert child.hidden_size in {a.hidden_size, b.hidden_size}
    kept = {tuple(i for i, _ in parent.kept) for parent in (a, b)}
    assert tuple(i for i, _ in child.kept) in kept
    for i, spec in child.kept:
        for name in DIMENSIONS:
            parents = (a, b) if name in space.shared_dimensions else [p for p in (a, b) if p.layers[i]]
            sources = [parent.kept[0][1] if name in space.shared_dimensions else parent.layers[i] for parent in parents]
            assert getattr(spec, name) in {getattr(source, name) for source in sources}


@given(spaces_with_members(members=2, kinds=True), SEEDS)
@settings(max_examples=200)
def test_operators_are_closed_over_spaces_of_every_kind_of_layer(case, seed):
    space, a, b = case
    rng = np.random.default_rng(seed)
    child, mixed = mutate(space, a, rng), crossover(space, a, b, rng)
    assert space.contains(child)
    assert space.contains(mixed)
    assert (child == a) == (space.size() == 1)


@given(spaces_with_members(max_layers=5) | spaces_with_members(kinds=True), SEEDS)
def test_the_child_of_equal_parents_is_the_parent(case, seed):
    space, arch = case
    assert crossover(space, arch, arch, np.random.default_rng(seed)) == arch


def test_crossover_mixes_both_parents_evenly():
    space = sparse("any", [6])
    a, b = space.smallest(), space.largest()
    rng = np.random.default_rng(0)
    children = [crossover(space, a, b, rng) for _ in range(500)]
    wide = np.array([[layer.ffn_size == 16 for layer in child.layers] for child in children])
    assert (abs(wide.mean(0) - 0.5) < 0.1).all()
    assert len(set(children)) > 50


def test_every_free_decision_is_mutated_equally_often():
    space = SearchSpace.from_dict(
        {
            **sparse("any", [3, 4], layers=4).model_dump(),
            "hidden_size": [4, 8],
            "kv_heads": [1, 2],
        }
    )
    arch = space.largest()
    rng = np.random.default_rng(0)
    draws = 7000
    counts = dict.fromkeys(["hidden_size", "depth", "kv_heads", 0, 1, 2, 3], 0)
    for _ in range(draws):
        child = mutate(space, arch, rng)
        if child.hidden_size != arch.hidden_size:
            counts["hidden_size"] += 1
        elif child.depth != arch.depth:
            counts["depth"] += 1
        elif child.kept[0][1].kv_heads != arch.kept[0][1].kv_heads:
            counts["kv_heads"] += 1
        else:
            counts[next(i for i in range(4) if child.layers[i] != arch.layers[i])] += 1
    assert all(abs(count - draws / 7) < 5 * (draws / 7) ** 0.5 for count in counts.values())


def reachable(space, start, tries=400):
    """What repeated mutation of everything found so far comes to."""
    rng = np.random.default_rng(0)
    found, frontier = {start}, [start]
    while frontier:
        arch = frontier.pop()
        new = {mutate(space, arch, rng) for _ in range(tries)} - found
        found |= new
        frontier += new
    return found


@given(spaces(max_layers=3) | spaces(max_layers=2, kinds=True))
@settings(max_examples=15)
def test_mutation_reaches_the_whole_of_a_small_space(space):
    assume(brute_size(space) <= 1500)
    members = members_with_probability(space)
    assume(len(members) <= 60)
    assert reachable(space, space.smallest(), tries=150) == set(members)


@pytest.mark.parametrize("policy", ["any", "keep_ends", "even"])
@pytest.mark.parametrize("choices", [[2, 4], [2, 5], [3, 6], [2, 4, 6]])
def test_mutation_reaches_every_depth_also_where_depths_are_not_neighbours(policy, choices):
    space = sparse(policy, choices)
    for start in (space.smallest(), space.largest()):
        arch, depths, rng = start, set(), np.random.default_rng(0)
        for _ in range(400):
            depths.add(arch.depth)
            arch = mutate(space, arch, rng)
        assert depths == set(choices)


def test_operators_ignore_the_global_generators():
    space = sparse("any", [2, 3])
    results = []
    for disturb in (1, 2):
        np.random.seed(disturb)
        rng = np.random.default_rng(5)
        a, b = mutate(space, space.smallest(), rng), mutate(space, space.largest(), rng)
        results.append((a, b, crossover(space, a, b, rng)))
    assert results[0] == results[1]
