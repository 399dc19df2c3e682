"""Mixtures of experts and layers without a mixer in stock classes."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from stock import stacked, stock_model
from strategies import random_tokens, scrambled
from transformers import AutoModelForCausalLM

from llmnas.errors import UserError
from llmnas.export import Card, stock_class, stock_shape
from llmnas.export.hf import write_checkpoint
from llmnas.export.layout import stock_reason
from llmnas.export.verify import check_model, relative_difference
from llmnas.export.weights import stock_weights
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec

TOLERANCE = 1e-5
BASE = BaseModel(vocab_size=32, rope_dim=8, max_seq=32, norm_top_k=True)
MOE = {"experts": 4, "top_k": 2}
CARD = Card(name="experts", metrics={}, data="speeches", seed=1, trained_tokens=0)


def unbalanced(arch, base=BASE):
    """Random weights, no balance bias: what stock classes can hold."""
    model = scrambled(FixedShape(base, arch)).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("balance"):
            buffer.zero_()
    return model


@st.composite
def mixtures(draw):
    """Layers with and without experts and mixers, sizes by layer, one share of the experts."""
    experts, top_k = draw(st.sampled_from([(2, 1), (2, 2), (3, 2), (4, 1)]))
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        repeat = draw(st.integers(0, 2))
        sizes = (draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.sampled_from([2, 4, 8])))
        kinds = {"experts": experts * repeat, "top_k": top_k * repeat} if repeat else {}
        mixer = draw(st.sampled_from(["attention", "attention", "none"]))
        layers.append(LayerSpec(*sizes, draw(st.sampled_from([4, 8, 12])), mixer=mixer, **kinds))
    base = replace(
        BASE, qk_norm=draw(st.booleans()), norm_top_k=draw(st.booleans()), qkv_bias=draw(st.booleans()),
        tied=draw(st.booleans()),
    )  # fmt: skip
    return base, Architecture(8, tuple(layers))


def test_stock_class_gives_the_logits_of_random_mixtures():
    seen = Counter()

    @settings(max_examples=120)
    @given(mixtures())
    def agree(drawn):
        base, arch = drawn
        model, tokens = unbalanced(arch, base), random_tokens(base, batch=2, seq=10)
        assume(stock_reason(model) is None)
        with torch.no_grad():
            assert relative_difference(stock_model(model)(tokens).logits, model(tokens)) <= TOLERANCE
        seen[stock_class(base, arch), stock_shape(base, arch).tier] += 1

    agree()
    assert {kind for kind, _ in seen} >= {"qwen3_moe", "mixtral", "llama", "qwen3"}
    assert {tier for _, tier in seen} == {1, 2}


@pytest.mark.parametrize(
    ("options", "layers", "class_name", "tier"),
    [
        ({"qk_norm": True, "norm_top_k": False}, (MOE, {}, MOE), "Qwen3MoeForCausalLM", 1),
        ({"qk_norm": True}, (MOE, {"experts": 2}, {"mixer": "none"}), "Qwen3MoeForCausalLM", 2),
        ({"tied": False}, (MOE, MOE), "MixtralForCausalLM", 1),
        ({}, (MOE, {}, {"experts": 2}), "MixtralForCausalLM", 2),
        ({}, ({}, {"mixer": "none"}), "LlamaForCausalLM", 2),
    ],
)
def test_a_folder_loads_as_the_stock_class_with_equal_logits(options, layers, class_name, tier, tmp_path):
    arch = Architecture(16, tuple(LayerSpec(2, 2, 8, 8, **kinds) for kinds in layers))
    model = unbalanced(arch, replace(BASE, **options))
    stored = write_checkpoint(model, tmp_path, None, CARD)
    tokens = random_tokens(model.base, batch=2, seq=32)
    with torch.no_grad():
        logits = model(tokens)
    assert (stored.class_name, stored.tier) == (class_name, tier)
    assert check_model(tmp_path, tokens, logits) <= TOLERANCE
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert stock.generate(tokens[:, :4], max_new_tokens=8, do_sample=False, eos_token_id=-1).shape == (2, 12)
    held = stock.state_dict()
    for name, weight in stacked(stock_weights(model, stock_shape(model.base, arch), o_bias=False)).items():
        assert torch.equal(held[name], weight), name
    assert ("2 of 4" in (tmp_path / "README.md").read_text()) == (MOE in layers)


def test_layers_of_one_share_are_repeated_and_cost_what_the_card_says(tmp_path):
    arch = Architecture(16, (LayerSpec(2, 2, 8, 8, experts=2, top_k=1), LayerSpec(2, 2, 8, 8, experts=6, top_k=3)))
    grid = stock_shape(BASE, arch).experts
    assert (grid.kind, grid.experts, grid.top_k) == ("mixtral", 6, 3)
    stored = write_checkpoint(unbalanced(arch), tmp_path, None, CARD)
    assert stored.parameters - stored.own_parameters == 4 * (3 * 8 * 16 + 16)


@pytest.mark.parametrize(
    ("options", "kinds", "message"),
    [
        ({"router": "sigmoid"}, [MOE], "layer 0 has a sigmoid router"),
        ({}, [{}, {**MOE, "shared_experts": 1}], "layer 1 has a shared expert"),
        ({"norm_top_k": False}, [{}, MOE], "layer 1 does not renormalise"),
        ({"qkv_bias": True}, [MOE], "Mixtral has none"),
        ({"qk_norm": True}, [MOE, {"experts": 4, "top_k": 1}], "2 of 4 in layer 0, 1 of 4 in layer 1"),
        ({"qk_norm": True}, [MOE, {"experts": 8, "top_k": 2}], "2 of 4 in layer 0, 2 of 8 in layer 1"),
    ],
)
def test_what_stock_classes_do_not_compute_goes_to_our_own_with_the_reason(options, kinds, message, tmp_path):
    arch = Architecture(16, tuple(LayerSpec(2, 2, 8, 8, **kind) for kind in kinds))
    base = replace(BASE, **options)
    with pytest.raises(UserError, match=message):
        stock_shape(base, arch)
    assert write_checkpoint(unbalanced(arch, base), tmp_path, None, CARD).tier == 3
    assert message in (tmp_path / "README.md").read_text()


def test_a_trained_balance_bias_goes_to_our_own_class(tmp_path):
    arch = Architecture(16, (LayerSpec(2, 2, 8, 8, **MOE),))
    model = unbalanced(arch)
    assert stock_reason(model) is None
    model.layers[0].ffn.balance[1] = 0.1
    assert "layer 0 chooses experts with a trained balance bias" in stock_reason(model)
    assert write_checkpoint(model, tmp_path, None, CARD).tier == 3
