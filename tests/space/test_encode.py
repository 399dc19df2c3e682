"""The integer code is exact in both directions; features are the sizes."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import brute_size, members_with_probability, spaces, spaces_with_members

from llmnas.space import KINDS, SIZES, SearchSpace, cardinalities, decode, encode, features


@given(spaces_with_members(max_layers=6, most_choices=3) | spaces_with_members(kinds=True))
def test_a_code_comes_back(case):
    space, arch = case
    code = encode(space, arch)
    limits = cardinalities(space)
    assert code.dtype == np.int64
    assert code.shape == (len(limits),)
    assert ((code >= 0) & (code < limits)).all()
    assert decode(space, code) == arch
    assert decode(space, code.tolist()) == arch


@given(spaces(max_layers=3) | spaces(max_layers=2, kinds=True))
@settings(max_examples=30)
def test_codes_tell_all_members_apart(space):
    assume(brute_size(space) <= 3000)
    members = members_with_probability(space)
    assert len({tuple(encode(space, arch)) for arch in members}) == len(members)


@given(spaces_with_members(max_layers=5), st.data())
def test_wrong_vectors_are_refused(case, data):
    space, arch = case
    code, limits = encode(space, arch), cardinalities(space)
    position = data.draw(st.integers(0, len(code) - 1))
    wrong = [code[:-1], np.append(code, 0), np.array([], dtype=np.int64)]
    for value in (-1, limits[position], 10**6):
        changed = code.copy()
        changed[position] = value
        wrong.append(changed)
    for vector in wrong:
        with pytest.raises(ValueError, match="not a code of this space"):
            decode(space, vector)


@given(spaces_with_members(max_layers=5), st.data())
def test_fractions_are_refused(case, data):
    space, arch = case
    code = encode(space, arch).astype(float)
    code[data.draw(st.integers(0, len(code) - 1))] += data.draw(st.sampled_from([0.25, -0.25, np.nan, np.inf, -np.inf]))
    with pytest.raises(ValueError, match="not a code of this space"):
        decode(space, code)


@pytest.mark.parametrize("policy", ["any", "keep_ends", "even"])
def test_whatever_decodes_is_a_member_or_refused(policy):
    space = SearchSpace.from_dict(
        {
            "base": {"vocab_size": 10},
            "layers": 4,
            "hidden_size": [4, 8],
            "depth": {"choices": [2, 4], "policy": policy},
            "kv_heads": [1, 2],
            "queries_per_group": 1,
            "head_dim": 4,
            "ffn_size": {"choices": [8, 16], "per_layer": True},
        }
    )
    decoded = set()
    for code in itertools.product(*(range(limit) for limit in cardinalities(space))):
        try:
            decoded.add(decode(space, np.array(code)))
        except ValueError:
            continue
    assert decoded == set(members_with_probability(space))


@given(spaces_with_members(max_layers=5) | spaces_with_members(kinds=True))
def test_features_are_sizes_over_the_largest_and_kinds(case):
    space, arch = case
    row = features(space, arch)
    sizes = [name for name in SIZES if space.dimension(name).choices not in {(0,), (1,)}]
    kinds = [
        (name, k) for name in KINDS for k in space.dimension(name).choices if len(space.dimension(name).choices) > 1
    ]
    assert row.dtype == np.float64
    assert row.shape == (1 + space.layers * (len(sizes) + len(kinds)),)
    assert row[0] == arch.hidden_size / max(space.hidden_size)
    table = row[1:].reshape(space.layers, len(sizes) + len(kinds))
    for layer, values in zip(arch.layers, table, strict=True):
        largest = [max(space.dimension(name).choices) for name in sizes]
        expected = [getattr(layer, name) if layer and layer.uses(name) else 0 for name in sizes]
        assert np.allclose(values[: len(sizes)] * largest, expected)
        assert values[len(sizes) :].tolist() == [float(bool(layer) and getattr(layer, name) == k) for name, k in kinds]


@given(spaces_with_members(members=2, max_layers=5) | spaces_with_members(members=2, kinds=True))
def test_features_tell_architectures_apart(case):
    space, a, b = case
    assert (a == b) == np.array_equal(features(space, a), features(space, b))
