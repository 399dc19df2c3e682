"""An architecture is a value: equal text for equal networks, and nothing malformed can exist."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import spaces_with_members

from llmnas.space import Architecture, BaseModel, LayerSpec

A, B = LayerSpec(2, 3, 16, 100), LayerSpec(1, 1, 8, 7)
ARCH = Architecture(64, (A, None, B))
TEXT = (
    '{"hidden_size":64,"layers":[{"ffn_size":100,"head_dim":16,"kv_heads":2,"queries_per_group":3},null,'
    '{"ffn_size":7,"head_dim":8,"kv_heads":1,"queries_per_group":1}]}'
)


def test_json_and_id_are_these_for_ever():
    """Run folders and file names hold them: `sha256sum` of the text gives the id."""
    assert ARCH.to_json() == TEXT
    assert ARCH.id == "0bdabde1c1"


def test_the_id_does_not_depend_on_the_process():
    code = f"from llmnas.space import Architecture; print(Architecture.from_json('{TEXT}').id)"
    result = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": "9"}, capture_output=True, text=True)
    assert result.stdout.strip() == ARCH.id


@given(spaces_with_members(members=2) | spaces_with_members(members=2, kinds=True))
def test_text_comes_back_and_tells_architectures_apart(case):
    _, a, b = case
    assert Architecture.from_json(a.to_json()) == a
    assert Architecture.from_dict(json.loads(json.dumps(a.to_dict()))) == a
    assert (a == b) == (a.to_json() == b.to_json()) == (a.id == b.id)
    assert (a == b) <= (hash(a) == hash(b))


@given(spaces_with_members())
def test_kept_depth_and_compact_agree(case):
    _, arch = case
    assert [i for i, _ in arch.kept] == [i for i, layer in enumerate(arch.layers) if layer]
    assert arch.depth == len(arch.kept) == len(arch.compact().layers)
    assert arch.compact().layers == tuple(layer for layer in arch.layers if layer)
    assert arch.compact().compact() == arch.compact()
    assert arch.compact().hidden_size == arch.hidden_size


def test_query_heads_are_a_product():
    assert (A.q_heads, B.q_heads) == (6, 1)


@pytest.mark.parametrize("size", [0, -8, True, 8.0, "8", None])
def test_sizes_that_are_not_positive_integers_are_refused(size):
    with pytest.raises(ValueError, match="positive integer"):
        Architecture(size, (A,))
    for position in range(4):
        sizes = [2, 2, 2, 2]
        sizes[position] = size
        with pytest.raises(ValueError, match="positive integer"):
            Architecture(8, (A, LayerSpec(*sizes)))


def test_what_a_layer_does_not_use_makes_no_difference():
    plain = LayerSpec(1, 1, 2, 16, mixer="none")
    assert LayerSpec(4, 2, 8, 16, mixer="none") == plain
    assert LayerSpec(4, 2, 8, 16, experts=1, top_k=3) == LayerSpec(4, 2, 8, 16)
    assert LayerSpec(4, 2, 8, 16, mixer="mlgru") != LayerSpec(4, 1, 8, 16, mixer="mlgru")
    assert '"mixer":"none"' in Architecture(8, (plain,)).to_json()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weights": "int4"}, "layer 1: weights must be one of binary, ternary, dense, got 'int4'"),
        ({"mixer": 3}, "layer 1: mixer must be one of none, mlgru, attention, got 3"),
        ({"experts": 2, "top_k": 3}, "layer 1: top_k = 3 is more than its 2 experts"),
        ({"experts": 2, "shared_experts": -1}, "layer 1: shared_experts must be 0 or more, got -1"),
        ({"experts": 0}, "positive integer"),
        ({"experts": 2, "top_k": True}, "positive integer"),
    ],
)
def test_impossible_layers_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Architecture(8, (A, LayerSpec(2, 2, 4, 8, **wrong)))


@pytest.mark.parametrize("layers", [(), (None,), (None, None)])
def test_a_network_without_layers_is_refused(layers):
    with pytest.raises(ValueError, match="at least one layer"):
        Architecture(8, layers)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "5",
        "{}",
        '{"hidden_size": 8}',
        '{"hidden_size": 8, "layers": 3}',
        '{"hidden_size": 8, "layers": [3]}',
        '{"hidden_size": 8, "layers": ["kv_heads"]}',
        '{"hidden_size": 8, "layers": [{"kv_heads": 1}]}',
        TEXT.replace("7", "7.0"),
        TEXT.replace("64", "true"),
        TEXT.replace('"kv_heads":2', '"kv_heads":2,"width":2'),
        TEXT.replace('"hidden_size":64', '"hidden_size":64,"vocab_size":100'),
    ],
)
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        Architecture.from_json(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"vocab_size": 0},
        {"vocab_size": -5},
        {"max_seq": 0},
        {"rope_theta": 0.0},
        {"rope_theta": float("nan")},
        {"rope_theta": float("inf")},
        {"norm_eps": 0.0},
        {"norm_eps": float("nan")},
        {"rope_dim": 0},
        {"rope_dim": 7},
        {"rope_dim": -2},
    ],
    ids=str,
)
def test_impossible_base_models_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BaseModel(**{"vocab_size": 100, **wrong})


@given(st.integers(1, 10**6), st.booleans())
def test_base_models_are_values(vocab_size, tied):
    assert BaseModel(vocab_size, tied) == BaseModel(vocab_size=vocab_size, tied=tied)
    assert hash(BaseModel(vocab_size, tied)) == hash(BaseModel(vocab_size=vocab_size, tied=tied))
