import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import spaces_with_members

from llmnas.errors import UserError
from llmnas.export import stock_class, stock_shape
from llmnas.export.shape import copies
from llmnas.nn.rope import frequencies
from llmnas.space import Architecture, BaseModel, LayerSpec

specs = st.builds(
    LayerSpec,
    kv_heads=st.integers(1, 6),
    queries_per_group=st.integers(1, 6),
    head_dim=st.sampled_from([2, 4, 6, 8]),
    ffn_size=st.integers(1, 9),
)


def uniform(hidden_size=16, kv_heads=2, queries_per_group=2, head_dim=4, ffn_size=8):
    return Architecture(hidden_size, (LayerSpec(kv_heads, queries_per_group, head_dim, ffn_size),) * 2)


@given(spaces_with_members())
def test_every_stored_pair_keeps_its_frequency(drawn):
    space, arch = drawn
    rope_dim = space.base.rope_dim or max(space.head_dim.choices)
    base = BaseModel(vocab_size=8, rope_dim=rope_dim, rope_order=space.base.rope_order)
    shape = stock_shape(base, arch)
    j = torch.tensor(shape.rope_pairs, dtype=torch.float64)
    stock = shape.rope_theta ** (-2 * j / shape.spec.head_dim)
    torch.testing.assert_close(stock, frequencies(rope_dim, base.rope_theta, base.rope_order)[: len(j)])
    assert shape.spec.head_dim <= rope_dim
    assert len(set(shape.rope_pairs)) == len(j) == max(spec.head_dim for _, spec in arch.kept) // 2


@given(st.lists(specs, min_size=1, max_size=4))
def test_every_layer_fits_and_costs_no_more_than_plain_padding(layers):
    shape = stock_shape(BaseModel(vocab_size=8), Architecture(16, tuple(layers)))
    for spec in layers:
        split = copies(spec, shape.spec.queries_per_group)
        assert spec.kv_heads * split <= shape.spec.kv_heads
        assert spec.queries_per_group <= split * shape.spec.queries_per_group
        assert spec.ffn_size <= shape.spec.ffn_size
    plain = max(s.kv_heads for s in layers) * (max(s.queries_per_group for s in layers) + 1)
    assert shape.spec.kv_heads * (shape.spec.queries_per_group + 1) <= plain


@given(specs, st.booleans())
def test_layers_of_one_size_are_not_padded(spec, qk_norm):
    shape = stock_shape(BaseModel(vocab_size=8, qk_norm=qk_norm, rope_dim=8), Architecture(16, (spec,) * 3))
    assert shape.spec == spec
    assert shape.tier == 1


def test_leading_pairs_are_a_stock_head_with_another_theta():
    shape = stock_shape(BaseModel(vocab_size=8, rope_theta=5000.0, rope_dim=16), uniform(head_dim=4))
    assert shape.rope_theta == pytest.approx(5000 ** (4 / 16))
    assert shape.rope_pairs == (0, 1)


def test_evenly_spread_pairs_are_a_stock_head_with_the_same_theta():
    shape = stock_shape(BaseModel(vocab_size=8, rope_dim=16, rope_order="spread"), uniform(head_dim=8))
    assert (shape.tier, shape.rope_theta, shape.rope_pairs) == (1, 10000.0, (0, 2, 1, 3))


def test_uneven_spread_pairs_are_padded_up_to_the_lowest_frequency_in_use():
    shape = stock_shape(BaseModel(vocab_size=8, rope_dim=16, rope_order="spread"), uniform(head_dim=10))
    assert (shape.tier, shape.spec.head_dim, shape.rope_pairs) == (2, 14, (0, 4, 2, 6, 1))
    assert shape.rope_theta == pytest.approx(10000 ** (14 / 16))


def test_a_large_group_is_split_over_copies_of_its_kv_head():
    layers = (LayerSpec(1, 8, 4, 8), LayerSpec(8, 1, 4, 8))
    shape = stock_shape(BaseModel(vocab_size=8), Architecture(16, layers))
    assert (shape.spec.kv_heads, shape.spec.queries_per_group) == (8, 1)


@pytest.mark.parametrize(
    ("kind", "options", "sizes"),
    [
        ("llama", {}, {}),
        ("llama", {"qkv_bias": True}, {}),
        ("mistral", {}, {"kv_heads": 3}),
        ("seed_oss", {"qkv_bias": True}, {"kv_heads": 3}),
        ("qwen3", {"qk_norm": True}, {}),
        ("qwen3", {"qk_norm": True, "qkv_bias": True}, {"kv_heads": 3}),
    ],
)
def test_which_class_is_chosen(kind, options, sizes):
    assert stock_class(BaseModel(vocab_size=8, **options), uniform(**sizes)) == kind


def test_the_class_depends_on_the_padded_heads():
    layers = (LayerSpec(2, 2, 4, 8), LayerSpec(1, 5, 4, 8))
    arch = Architecture(16, layers)
    heads = stock_shape(BaseModel(vocab_size=8), arch).spec.q_heads
    assert math.gcd(heads, 16) != heads
    assert stock_class(BaseModel(vocab_size=8), arch) == "mistral"


@pytest.mark.parametrize("kind", [{"weights": "ternary"}, {"weights": "binary"}, {"mixer": "mlgru"}])
def test_layers_that_no_stock_class_has_are_refused_by_number(kind):
    arch = Architecture(16, (LayerSpec(1, 1, 4, 8), LayerSpec(1, 1, 4, 8, **kind)))
    with pytest.raises(UserError, match="layer 1 has"):
        stock_shape(BaseModel(vocab_size=8), arch)
