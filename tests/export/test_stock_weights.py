from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from stock import stock_model
from strategies import random_tokens, scrambled, spaces_with_members
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from llmnas.cost import count_params
from llmnas.export import stock_class, stock_shape
from llmnas.export.config import has_output_bias
from llmnas.export.verify import relative_difference
from llmnas.export.weights import stock_weights
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec
from llmnas.supernet import Transformer, extract

TOLERANCE = 1e-5


@torch.no_grad()
def stock_logits(model, tokens):
    return stock_model(model)(tokens).logits


def test_supernet_extracted_and_stock_model_agree():
    seen = Counter()

    @settings(max_examples=300)
    @given(spaces_with_members())
    def agree(drawn):
        space, arch = drawn
        supernet = scrambled(space)
        small = extract(supernet, arch)
        tokens = random_tokens(space.base, batch=2, seq=12)
        with torch.no_grad():
            logits = supernet(tokens, arch)
            assert relative_difference(small(tokens), logits) <= TOLERANCE
        assert relative_difference(stock_logits(small, tokens), logits) <= TOLERANCE
        seen[stock_class(small.base, small.envelope)] += 1
        seen[stock_shape(small.base, small.envelope).tier] += 1

    agree()
    assert seen.keys() == {"llama", "mistral", "seed_oss", "qwen3", 1, 2}


MIXED = Architecture(12, (LayerSpec(1, 4, 4, 8), LayerSpec(3, 1, 8, 5), LayerSpec(2, 3, 2, 12)))


@pytest.mark.parametrize("order", ["leading", "spread"])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_layers_of_different_sizes_are_padded_exactly(order, qk_norm, qkv_bias):
    base = BaseModel(
        vocab_size=32, qk_norm=qk_norm, qkv_bias=qkv_bias, rope_order=order, rope_dim=8, max_seq=64, norm_eps=0.1
    )  # an eps that matters: the norm over padded channels must carry it over
    model = scrambled(FixedShape(base, MIXED))
    tokens = random_tokens(base, batch=2, seq=64)
    with torch.no_grad():
        logits = model(tokens)
    assert relative_difference(stock_logits(model, tokens), logits) <= TOLERANCE
    # the comparison sees rotary frequencies, attention scale and eps at all
    for wrong in ({"rope_theta": 5000.0}, {"norm_eps": 0.11}):
        other = scrambled(FixedShape(replace(base, **wrong), MIXED))
        assert relative_difference(stock_logits(other, tokens), logits) > 10 * TOLERANCE


@pytest.mark.parametrize("options", [{}, {"tied": False}, {"qk_norm": True}, {"qkv_bias": True}])
def test_tier_1_stores_only_the_parameters_of_the_architecture(options):
    base = BaseModel(vocab_size=32, **options)
    arch = Architecture(12, (LayerSpec(3, 2, 4, 8),) * 2)
    kind, shape = stock_class(base, arch), stock_shape(base, arch)
    model = Transformer(FixedShape(base, arch))
    weights = stock_weights(model, shape, o_bias=has_output_bias(kind, base))
    zeros = arch.depth * arch.hidden_size if kind == "llama" and base.qkv_bias else 0
    assert sum(weight.numel() for weight in weights.values()) == count_params(arch, base).total + zeros


SIZES = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 3000.0},
    "initializer_range": 0.3,
}


def adjacent(x, heads):
    """[heads * 8, ..] with halves (i, i + 4) paired -> [heads, 8, ..] with neighbours paired."""
    return x.view(heads, 2, 4, *x.shape[1:]).transpose(1, 2).reshape(heads, 8, *x.shape[1:])


def from_stock(stock):
    """Our model with the weights of a stock one: written from transformers' layout, not from our export."""
    config, weights = stock.config, stock.state_dict()
    qk_norm = config.model_type == "qwen3"
    base = BaseModel(40, tied=config.tie_word_embeddings, qk_norm=qk_norm, rope_theta=3000.0, max_seq=64)
    model = Transformer(FixedShape(base, Architecture(24, (LayerSpec(3, 2, 8, 20),) * 2)))
    ours = {"embedding.weight": weights["model.embed_tokens.weight"], "norm": weights["model.norm.weight"]}
    if not base.tied:
        ours["head.weight"] = weights["lm_head.weight"]
    for i in range(2):
        theirs = {k.removeprefix(f"model.layers.{i}."): v for k, v in weights.items()}
        layer = {
            "mixer_norm": theirs["input_layernorm.weight"],
            "ffn_norm": theirs["post_attention_layernorm.weight"],
            "attention.q.weight": adjacent(theirs["self_attn.q_proj.weight"], 6).flatten(0, 1),
            "attention.k.weight": adjacent(theirs["self_attn.k_proj.weight"], 3).flatten(0, 1),
            "attention.v.weight": theirs["self_attn.v_proj.weight"],
            "attention.o.weight": theirs["self_attn.o_proj.weight"],
            "ffn.gate.weight": theirs["mlp.gate_proj.weight"],
            "ffn.up.weight": theirs["mlp.up_proj.weight"],
            "ffn.down.weight": theirs["mlp.down_proj.weight"],
        }
        if qk_norm:
            layer["attention.q_norm"] = adjacent(theirs["self_attn.q_norm.weight"], 1).view(8)
            layer["attention.k_norm"] = adjacent(theirs["self_attn.k_norm.weight"], 1).view(8)
        ours |= {f"layers.{i}.{name}": weight for name, weight in layer.items()}
    model.load_state_dict(ours)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("config", "cls"), [(LlamaConfig, LlamaForCausalLM), (Qwen3Config, Qwen3ForCausalLM)])
def test_weights_of_a_stock_model_give_its_logits_in_ours_and_come_back_the_same(config, cls, tied):
    torch.manual_seed(0)
    stock = cls(config(tie_word_embeddings=tied, **SIZES)).eval()
    with torch.no_grad():
        for parameter in stock.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    model = from_stock(stock)
    tokens = random_tokens(model.base, batch=2, seq=64)
    with torch.no_grad():
        assert relative_difference(model(tokens), stock(tokens).logits) <= TOLERANCE
    back = stock_weights(model, stock_shape(model.base, model.envelope), o_bias=False)
    theirs = {k: v for k, v in stock.state_dict().items() if not (tied and k == "lm_head.weight")}
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], theirs[name]) for name in back)
