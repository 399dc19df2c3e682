"""Hand-designed shapes: the families' proportions, and the parameter count they were asked for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmnas.cost import FAMILIES, count_params, hand_designed
from llmnas.errors import UserError
from llmnas.space import BaseModel

BASE = BaseModel(vocab_size=512, max_seq=128)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15)
@given(params=st.integers(120_000, 3_000_000))
def test_a_shape_has_at_most_the_parameters_asked_for_and_hardly_fewer(family, params):
    arch = hand_designed(family, BASE, 16, params, 0.02)
    assert 0.98 * params <= count_params(arch, BASE).total <= params
    assert len(set(arch.layers)) == 1  # people give every layer the same sizes


@pytest.mark.parametrize(
    ("family", "aspect", "ffn_ratio", "width_ratio", "mixer"),
    [
        ("smollm2", 19.2, 2.67, 1.0, "attention"),
        ("qwen3", 36.6, 3.0, 2.0, "attention"),
        ("llama3", 128.0, 4.0, 1.0, "attention"),
        ("smollm2_mlgru", 19.2, 2.67, 1.0, "mlgru"),
    ],
)
def test_a_large_shape_has_the_proportions_of_its_family(family, aspect, ffn_ratio, width_ratio, mixer):
    arch = hand_designed(family, BaseModel(vocab_size=49152), 64, 300_000_000)
    layer = arch.kept[0][1]
    assert layer.mixer == mixer
    assert arch.hidden_size / arch.depth == pytest.approx(aspect, rel=0.1)
    assert layer.ffn_size / arch.hidden_size == pytest.approx(ffn_ratio, rel=0.1)
    assert layer.q_heads * layer.head_dim / arch.hidden_size == pytest.approx(width_ratio, rel=0.2)


def test_a_vocabulary_that_leaves_nothing_for_layers_is_named():
    with pytest.raises(UserError, match=r"no smollm2 shape has 10,000 parameters with a vocabulary of 49152"):
        hand_designed("smollm2", BaseModel(vocab_size=49152), 16, 10_000)
