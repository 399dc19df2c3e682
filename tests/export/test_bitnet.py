"""Ternary networks in transformers' BitNet class. torch.compile is off: BitLinear computes the same without."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from strategies import random_tokens, scrambled
from transformers import AutoModelForCausalLM
from transformers.integrations.bitnet import pack_weights

from llmnas.errors import UserError
from llmnas.export import Card
from llmnas.export.bitnet import BITNET, bitnet_shape, pack
from llmnas.export.hf import write_checkpoint
from llmnas.export.verify import INT8_TOLERANCE, check_model, relative_difference
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec, SearchSpace
from llmnas.supernet import extract

BASE = BaseModel(vocab_size=40, rope_dim=8, max_seq=32)
TERNARY = LayerSpec(2, 2, 8, 24, weights="ternary")
CARD = Card(name="ternary", metrics={}, data="speeches", seed=1, trained_tokens=0)


@pytest.fixture(autouse=True)
def eager():
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize("options", [{}, {"tied": False, "qkv_bias": True}])
def test_a_ternary_network_loads_as_bitnet_and_saves_the_same_bytes(options, tmp_path):
    model = scrambled(FixedShape(replace(BASE, **options), Architecture(32, (TERNARY,) * 3))).eval()
    (tmp_path / "first").mkdir()
    stored = write_checkpoint(model, tmp_path / "first", None, CARD)
    tokens = random_tokens(model.base, batch=2, seq=32)
    with torch.no_grad():
        logits = model(tokens)
    assert (stored.class_name, stored.tier) == (BITNET, 1)
    assert check_model(tmp_path / "first", tokens, logits) <= INT8_TOLERANCE
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    with torch.no_grad():  # an activation that was tipped over is rare: the bulk is equal to float rounding
        assert ((loaded(tokens).logits - logits).abs() / logits.abs().max()).median() <= 1e-5
    assert loaded.generate(tokens[:, :4], max_new_tokens=4, do_sample=False, eos_token_id=-1).shape == (2, 8)
    loaded.save_pretrained(tmp_path / "second")
    AutoModelForCausalLM.from_pretrained(tmp_path / "second").save_pretrained(tmp_path / "third")
    first, *again = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second", "third"))
    for weights in again:
        assert weights.keys() == first.keys()
        assert all(torch.equal(weights[name], first[name]) for name in first)
    codes = [weight for weight in first.values() if weight.dtype == torch.uint8]
    assert len(codes) == 7 * 3
    extra = 3 * 32 if model.base.qkv_bias else 0  # the class has a bias on the output projection too
    assert stored.parameters == stored.own_parameters + extra


def test_a_slice_of_a_supernet_keeps_the_supernets_scale(tmp_path):
    space = SearchSpace.from_dict(
        {
            "base": BASE, "layers": 2, "hidden_size": [32, 64], "depth": [1, 2], "kv_heads": [2], "head_dim": 8,
            "queries_per_group": [2, 4], "ffn_size": [24, 48], "weights": ["ternary"],
        }
    )  # fmt: skip
    model = extract(scrambled(space), Architecture(32, (TERNARY, TERNARY))).eval()
    write_checkpoint(model, tmp_path, None, CARD)
    tokens = random_tokens(BASE, batch=2, seq=16)
    with torch.no_grad():
        assert check_model(tmp_path, tokens, model(tokens)) <= INT8_TOLERANCE
        assert relative_difference(model(tokens), scrambled(space)(tokens)) > 10 * INT8_TOLERANCE


def test_codes_are_packed_as_transformers_packs_them():
    codes = torch.randint(-1, 2, (12, 5), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(pack(codes), pack_weights(codes.clone()))


@pytest.mark.parametrize(
    ("options", "layer", "message"),
    [
        ({}, replace(TERNARY, weights="dense"), "layer 1 has dense weights"),
        ({}, replace(TERNARY, mixer="mlgru"), "mixer mlgru"),
        ({}, replace(TERNARY, queries_per_group=1), "2 x 8 wide"),
        ({}, replace(TERNARY, ffn_size=28), "nothing can be padded"),
        ({}, replace(TERNARY, ffn_size=26), "packs 4 rows into a byte, ffn_size is 26"),
        ({"qk_norm": True}, TERNARY, "no QK norm"),
    ],
)
def test_what_bitnet_does_not_compute_goes_to_our_own_class_with_the_reason(options, layer, message, tmp_path):
    base, arch = replace(BASE, **options), Architecture(32, (TERNARY, layer))
    with pytest.raises(UserError, match=message):
        bitnet_shape(base, arch)
    assert write_checkpoint(scrambled(FixedShape(base, arch)), tmp_path, None, CARD).tier == 3
    assert message in (tmp_path / "README.md").read_text()
