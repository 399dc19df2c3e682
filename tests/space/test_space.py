"""The space against brute force: what is in it, how many, how it is drawn; and what is refused."""

import math
from collections import Counter

import numpy as np
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from strategies import brute_size, members_with_probability, spaces, spaces_with_members

from llmnas.cost import costs
from llmnas.errors import UserError
from llmnas.space import DIMENSIONS, Architecture, LayerSpec, SearchSpace, even_subset

GOOD = {
    "base": {"vocab_size": 100},
    "layers": 3,
    "hidden_size": [16, 8],
    "depth": {"choices": [2, 3], "policy": "any"},
    "kv_heads": [1, 2],
    "queries_per_group": 2,
    "head_dim": {"choices": [4, 8], "per_layer": True},
    "ffn_size": {"choices": [8, 16], "per_layer": True},
}


@given(spaces(max_layers=3) | spaces(max_layers=2, kinds=True))
@settings(max_examples=60)
def test_size_and_membership_equal_brute_force(space):
    assume(brute_size(space) <= 20_000)
    members = members_with_probability(space)
    assert space.size() == len(members)
    assert all(space.contains(arch) for arch in members)
    assert math.isclose(sum(members.values()), 1)


def test_kinds_and_experts_are_counted_by_hand():
    """Two shared head counts; a layer: no mixer (heads do not matter) or attention, dense or 4 experts with k of 2."""
    space = SearchSpace.from_dict(
        {
            **GOOD, "layers": 2, "hidden_size": 8, "depth": 2, "head_dim": 4, "ffn_size": 8,
            "mixer": {"choices": ["attention", "none"], "per_layer": True},
            "experts": {"choices": [1, 4], "per_layer": True}, "top_k": {"choices": [1, 2], "per_layer": True},
        }
    )  # fmt: skip
    # one setting of the heads: 6 layers, 36 pairs; the 9 pairs without attention are the same under both settings
    assert space.size() == 2 * 36 - 9
    assert [a.kept[0][1].mixer for a in (space.smallest(), space.largest())] == ["none", "attention"]


@pytest.mark.parametrize("policy", ["any", "keep_ends", "even"])
def test_members_are_exactly_those_of_a_wider_space_that_contains_accepts(policy):
    space = SearchSpace.from_dict({**GOOD, "hidden_size": 8, "depth": {"choices": [2], "policy": policy}})
    wider = SearchSpace.from_dict(
        {**GOOD, "hidden_size": [8, 12], "depth": [1, 2, 3], "kv_heads": {"choices": [1, 2], "per_layer": True}}
    )
    accepted = {arch for arch in members_with_probability(wider) if space.contains(arch)}
    assert accepted == set(members_with_probability(space))


def test_size_is_exact_where_floats_are_not():
    space = SearchSpace.from_dict(
        {**GOOD, "layers": 40, "depth": [39, 40], "ffn_size": {"choices": list(range(1, 12)), "per_layer": True}}
    )
    assert space.size() == 2 * 2 * (40 * 22**39 + 22**40)


@given(spaces_with_members(max_layers=6) | spaces_with_members(max_layers=6, kinds=True))
def test_samples_and_extremes_are_members(case):
    space, arch = case
    assert all(space.contains(a) for a in (arch, space.smallest(), space.middle(), space.largest()))
    assert space.require(arch) is arch


@given(spaces_with_members(max_layers=6))
def test_extremes_bound_every_cost_and_the_envelope_holds_everything(case):
    space, arch = case
    least, found, most = (costs(a, space.base) for a in (space.smallest(), arch, space.largest()))
    assert all(least[name] <= found[name] <= most[name] for name in found)
    assert arch.hidden_size <= space.envelope.hidden_size
    for layer, largest in zip(arch.layers, space.envelope.layers, strict=True):
        assert layer is None or all(getattr(layer, name) <= getattr(largest, name) for name in DIMENSIONS)


@pytest.mark.parametrize("policy", ["any", "keep_ends", "even"])
def test_every_decision_of_a_sample_is_uniform(policy):
    space = SearchSpace.from_dict({**GOOD, "depth": {"choices": [2, 3], "policy": policy}})
    expected = members_with_probability(space)
    draws = 15_000
    rng = np.random.default_rng(1)
    counts = Counter(space.sample(rng) for _ in range(draws))
    assert set(counts) <= set(expected)
    frequencies = [counts[arch] for arch in expected]
    assert chisquare(frequencies, [p * draws for p in expected.values()]).pvalue > 1e-4


def test_sampling_ignores_the_global_generators():
    space = SearchSpace.from_dict(GOOD)
    first = [space.sample(np.random.default_rng(i)) for i in range(5)]
    np.random.seed(3)
    assert [space.sample(np.random.default_rng(i)) for i in range(5)] == first


@given(st.integers(1, 64), st.data())
def test_even_subsets_are_distinct_and_even(layers, data):
    depth = data.draw(st.integers(1, layers))
    kept = even_subset(layers, depth)
    assert len(set(kept)) == depth
    assert kept == tuple(sorted(kept))
    assert kept[0] == 0
    if depth > 1:
        assert kept[-1] == layers - 1
        steps = np.diff(kept)
        assert steps.max() - steps.min() <= 2
        assert max(abs(i - k * (layers - 1) / (depth - 1)) for k, i in enumerate(kept)) <= 0.5


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (Architecture(12, (LayerSpec(1, 2, 4, 8),) * 3), "hidden_size = 12 is none of 8, 16"),
        (Architecture(8, (LayerSpec(1, 2, 4, 8),) * 2), "2 layers instead of 3"),
        (Architecture(8, (LayerSpec(1, 2, 4, 8),) * 4), "4 layers instead of 3"),
        (Architecture(8, (LayerSpec(1, 2, 4, 8), None, None)), "the layers 0 may not be those that are kept"),
        (Architecture(8, (LayerSpec(1, 2, 6, 8),) * 3), "layer 0: head_dim = 6 is none of 4, 8"),
        (Architecture(8, (LayerSpec(1, 1, 4, 8),) * 3), "layer 0: queries_per_group = 1 is none of 2"),
        (
            Architecture(8, (LayerSpec(1, 2, 4, 8), LayerSpec(2, 2, 4, 8), None)),
            "kv_heads must be the same in every layer",
        ),
        (
            Architecture(8, (LayerSpec(1, 2, 4, 8), LayerSpec(1, 2, 4, 8, experts=8), None)),
            "layer 1: experts = 8 is none of 1",
        ),
    ],
)
def test_strangers_are_refused_by_name_and_reason(other, reason):
    space = SearchSpace.from_dict(GOOD)
    assert not space.contains(other)
    with pytest.raises(UserError, match=rf"{other.id} .* is not in the search space: {reason}"):
        space.require(other)


def test_yaml_short_forms_mean_the_same(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "depth": [3, 2], "queries_per_group": {"choices": [2]}}))
    nested = tmp_path / "config.yaml"
    nested.write_text(yaml.safe_dump({"space": GOOD, "seed": 1}))
    space = SearchSpace.from_dict(GOOD)
    assert SearchSpace.from_yaml(path) == space == SearchSpace.from_yaml(str(nested))
    assert hash(SearchSpace.from_yaml(path)) == hash(space)
    assert space.hidden_size == (8, 16)


@given(spaces())
def test_a_space_is_what_its_dump_says(space):
    dumped = space.model_dump()
    assert SearchSpace.from_dict(dumped) == space
    assert hash(SearchSpace.from_dict(dumped)) == hash(space)


BAD = {
    "odd head dim": ({"head_dim": [4, 5]}, r"head_dim.*even.*\[5\]"),
    "empty": ({"kv_heads": []}, r"kv_heads.*at least one positive integer"),
    "empty hidden": ({"hidden_size": []}, r"hidden_size.*at least one positive integer"),
    "empty depth": ({"depth": []}, r"depth.*at least one positive integer"),
    "duplicate": ({"ffn_size": {"choices": [8, 8]}}, r"ffn_size.*distinct.*\[8, 8\]"),
    "duplicate hidden": ({"hidden_size": [8, 16, 8]}, r"hidden_size.*distinct"),
    "negative": ({"ffn_size": [-8, 8]}, r"ffn_size.*greater than 0.*-8"),
    "zero": ({"queries_per_group": 0}, r"queries_per_group.*greater than 0.*0"),
    "zero layers": ({"layers": 0}, r"layers.*greater than 0"),
    "fraction": ({"ffn_size": [8.5]}, r"ffn_size.*8\.5"),
    "word": ({"ffn_size": ["wide"]}, r"ffn_size.*wide"),
    "null": ({"ffn_size": None}, r"ffn_size.*None"),
    "bool in a list": ({"kv_heads": [True, 2]}, r"kv_heads.*True"),
    "bool": ({"hidden_size": True}, r"hidden_size.*True"),
    "bool hidden in a list": ({"hidden_size": [True, 8]}, r"hidden_size.*True"),
    "bool layers": ({"layers": True, "depth": 1}, r"layers.*True"),
    "bool depth": ({"depth": {"choices": [True]}}, r"depth.*True"),
    "bool vocabulary": ({"base": {"vocab_size": True}}, r"vocab_size.*True"),
    "depth above layers": ({"depth": [2, 4]}, r"depth.choices.*\[1, 3\].*\[4\]"),
    "depth without ends": ({"depth": {"choices": [1, 2], "policy": "keep_ends"}}, r"depth.choices.*\[2, 3\].*\[1\]"),
    "policy": ({"depth": {"choices": [1], "policy": "odd"}}, r"depth.policy.*'any', 'keep_ends' or 'even'"),
    "unknown key": ({"width": 8}, r"width: unknown key"),
    "unknown inner key": ({"ffn_size": {"choices": [8], "perlayer": True}}, r"ffn_size.perlayer: unknown key"),
    "unknown base key": ({"base": {"vocab_size": 100, "vocabulary": 5}}, r"base.vocabulary: unknown key"),
    "missing vocabulary": ({"base": {}}, r"base.vocab_size: missing key"),
    "negative vocabulary": ({"base": {"vocab_size": -1}}, r"base.*vocab_size must be positive, got -1"),
    "rope order": ({"base": {"vocab_size": 9, "rope_order": "odd"}}, r"base.rope_order.*'leading' or 'spread'"),
    "rope_dim below head_dim": ({"base": {"vocab_size": 9, "rope_dim": 4}}, r"rope_dim.*8"),
    "k above experts": ({"experts": [1, 2, 4], "top_k": [1, 3]}, r"top_k.*\[1, 2, 4\].*\[3\]"),
    "shared without experts": ({"shared_experts": 1}, r"shared_experts.*\[1\]"),
    "a negative number of shared experts": ({"experts": 2, "shared_experts": -1}, r"shared_experts"),
    "k without experts": ({"top_k": 2}, r"top_k.*\[1\].*\[2\]"),
    "unknown weights": ({"weights": ["dense", "quaternary"]}, r"weights.*'binary', 'ternary' or 'dense'"),
    "unknown mixer": ({"mixer": "mamba"}, r"mixer.*'none', 'mlgru' or 'attention'"),
    "per_layer": ({"ffn_size": {"choices": [8], "per_layer": "maybe"}}, r"ffn_size.per_layer.*boolean.*maybe"),
}


@pytest.mark.parametrize("case", BAD)
def test_impossible_spaces_are_refused_with_file_key_and_reason(tmp_path, case):
    change, message = BAD[case]
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **change}))
    with pytest.raises(UserError, match=message) as error:
        SearchSpace.from_yaml(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_missing_keys_are_counted():
    with pytest.raises(UserError, match=r"^space: layers: missing key \(and 2 more\)$"):
        SearchSpace.from_dict({key: GOOD[key] for key in GOOD if key not in {"layers", "depth", "ffn_size"}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- 1", "must hold a mapping"),
        (b"space: [1]", r": .*"),
        (b"layers: 1\nlayers: 2", "'layers' stands twice"),
        (b"layers: \xe9", "not UTF-8"),
    ],
)
def test_files_that_are_no_space_are_refused(tmp_path, content, message):
    path = tmp_path / "space.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        SearchSpace.from_yaml(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
