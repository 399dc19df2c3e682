"""The layout of DeciLM / Nemotron-NAS, read by a plain torch model that knows config.json and the tensors alone."""

import copy
import json
import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import assume, given, settings
from safetensors.torch import load_file
from strategies import random_tokens, scrambled, spaces_with_members

from llmnas.errors import UserError
from llmnas.export import Card, export_hf, hf
from llmnas.export.block_configs import block_shapes, block_weights, lay_out_blocks
from llmnas.export.configuration_decilm import DeciLMConfig, ffn_size
from llmnas.export.hf import write_checkpoint
from llmnas.export.modeling_decilm import DeciLMForCausalLM
from llmnas.export.verify import relative_difference
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec
from llmnas.supernet import extract

BASE = BaseModel(vocab_size=300, rope_dim=16, max_seq=64)
IDLE = LayerSpec(1, 1, 2, 40, mixer="none")
# sizes by layer, one that needs a copied KV head, one without attention; 12 heads do not divide the hidden size
MIXED = Architecture(40, (LayerSpec(2, 6, 16, 300), LayerSpec(3, 1, 8, 256), IDLE, LayerSpec(1, 5, 16, 64)))
CARD = Card(name="blocks", metrics={}, data="speeches", seed=1, trained_tokens=0)


def rms(x, gain, eps):
    return gain * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def turned(x, theta):
    """Rotary positions in the layout of transformers: x [batch, heads, seq, D], pairs (i, i + D / 2)."""
    half = x.shape[-1] // 2
    angle = torch.outer(torch.arange(x.shape[2]), theta ** -(torch.arange(half) / half))
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def read(config, weights, tokens):
    """Logits by vLLM's rules for `nemotron-nas`: its two streams, its sizes, every tensor used and of those sizes.

    Like there, layer 0 has to have attention: only that begins the residual.
    """
    c, left = SimpleNamespace(**config), dict(weights)

    def linear(x, name, out):
        weight, bias = left.pop(f"{name}.weight"), left.pop(f"{name}.bias", None)
        assert weight.shape == (out, x.shape[-1]), name
        assert (bias is not None) == (c.attention_bias and "self_attn" in name), name
        return F.linear(x, weight, bias)

    embedding = left.pop("model.embed_tokens.weight")
    new, residual = embedding[tokens], None
    for i, block in enumerate(c.block_configs):
        room = f"model.layers.{i}"
        if not block["attention"]["no_op"]:
            residual = new if residual is None else residual + new
            kv_heads = c.num_attention_heads // block["attention"]["n_heads_in_group"]
            x = rms(residual, left.pop(f"{room}.input_layernorm.weight"), c.rms_norm_eps)
            q, k, v = (
                linear(x, f"{room}.self_attn.{name}_proj", heads * c.head_dim)
                .unflatten(-1, (heads, c.head_dim))
                .transpose(1, 2)
                for name, heads in zip("qkv", (c.num_attention_heads, kv_heads, kv_heads), strict=True)
            )
            q, k = turned(q, c.rope_theta), turned(k, c.rope_theta)
            k, v = (y.repeat_interleave(c.num_attention_heads // kv_heads, 1) for y in (k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            new = linear(mixed.transpose(1, 2).flatten(2), f"{room}.self_attn.o_proj", c.hidden_size)
        if not block["ffn"]["no_op"]:
            residual = residual + new
            wide = int(2 * block["ffn"]["ffn_mult"] * c.hidden_size / 3)
            wide += -wide % 256
            x = rms(residual, left.pop(f"{room}.post_attention_layernorm.weight"), c.rms_norm_eps)
            gate, up = (linear(x, f"{room}.mlp.{name}_proj", wide) for name in ("gate", "up"))
            new = linear(F.silu(gate) * up, f"{room}.mlp.down_proj", c.hidden_size)
    x = rms(residual + new, left.pop("model.norm.weight"), c.rms_norm_eps)
    logits = F.linear(x, embedding if c.tie_word_embeddings else left.pop("lm_head.weight"))
    assert not left
    return logits


def differs(model, config, weights, tokens):
    with torch.no_grad():
        return relative_difference(read(config, weights, tokens), model(tokens))


@pytest.mark.parametrize("options", [{}, {"tied": False, "qkv_bias": True, "rope_order": "spread"}])
@pytest.mark.parametrize("arch", [MIXED, Architecture(48, (IDLE, IDLE, *MIXED.layers[:2]))])
def test_a_reader_of_the_layout_gives_our_logits(options, arch, tokenizer_path, tmp_path):
    model = scrambled(FixedShape(replace(BASE, **options), arch)).eval()
    stored = write_checkpoint(model, tmp_path, tokenizer_path, CARD, lay=lay_out_blocks)
    config = json.loads((tmp_path / "config.json").read_text())
    weights = load_file(tmp_path / "model.safetensors")
    assert differs(model, config, weights, random_tokens(model.base, batch=2, seq=64)) <= 1e-4
    assert (config["architectures"], config["model_type"]) == (["DeciLMForCausalLM"], "nemotron-nas")
    idle = [block["attention"]["no_op"] for block in config["block_configs"]]
    assert idle == [i > 0 and spec.mixer == "none" for i, spec in enumerate(arch.layers)]
    assert stored.parameters == sum(weight.numel() for weight in weights.values())
    card = (tmp_path / "README.md").read_text()
    assert "has not been run there" in card
    assert f"{stored.parameters:,} parameters for {stored.own_parameters:,}" in card


@settings(max_examples=25)
@given(spaces_with_members(max_layers=3))
def test_any_dense_network_without_a_qk_norm_can_be_said(case):
    space, arch = case
    assume(not space.base.qk_norm)
    model = extract(scrambled(space), arch).eval()
    config = lay_out_blocks(model, None).config.to_dict()
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    shapes = block_shapes(replace(model.base, rope_dim=model.rope_dim), arch)
    assert differs(model, config, block_weights(model, shapes), random_tokens(space.base, batch=2, seq=9)) <= 1e-4


def test_the_folder_is_verified_loads_in_transformers_and_generates(tokenizer_path, tmp_path):
    """In a fresh process, by the code in the folder, on write; then with a KV cache."""
    model = scrambled(FixedShape(BASE, MIXED)).eval()
    report = export_hf(
        model, tmp_path / "blocks", tokenizer_path=tokenizer_path, card=CARD, layout=lay_out_blocks
    )  # fmt: skip
    assert (report.class_name, report.tier) == ("DeciLMForCausalLM", 3)
    assert report.difference <= 1e-5
    loaded = DeciLMForCausalLM.from_pretrained(tmp_path / "blocks").eval()
    tokens = random_tokens(BASE, batch=2, seq=8)
    found = loaded.generate(tokens, max_new_tokens=12, do_sample=False, eos_token_id=-1)
    beams = loaded.generate(tokens, max_new_tokens=4, num_beams=3, do_sample=False, eos_token_id=-1)
    assert beams.shape == (2, 12)
    for _ in range(12):
        with torch.no_grad():
            tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found, tokens)


def test_blocks_are_objects_with_attributes_and_survive_saving(tmp_path):
    (tmp_path / "first").mkdir()
    write_checkpoint(scrambled(FixedShape(BASE, MIXED)), tmp_path / "first", None, CARD, lay=lay_out_blocks)
    config = DeciLMConfig.from_pretrained(tmp_path / "first")
    copy.deepcopy(config).save_pretrained(tmp_path / "second")
    groups = [block.attention.n_heads_in_group for block in pickle.loads(pickle.dumps(config)).block_configs]
    assert groups == [6, 4, None, 12]
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "second"))
    assert second["block_configs"] == first["block_configs"]


def test_every_multiple_of_256_has_a_multiplier_that_comes_back():
    for hidden_size in (40, 96, 768, 4096, 5120, 8192):
        for size in range(256, 8 * hidden_size + 256, 256):
            mult = 3 * size / (2 * hidden_size)
            assert ffn_size(mult, hidden_size) == ffn_size(round(mult, 6), hidden_size) == size


DENSE = LayerSpec(2, 2, 8, 32)


@pytest.mark.parametrize(
    ("options", "layer", "message"),
    [
        ({"qk_norm": True}, DENSE, "the model has a QK norm; block_configs cannot say that"),
        ({}, replace(DENSE, mixer="mlgru"), "layer 1 has dense weights and mixer mlgru.*block_configs cannot"),
        ({}, replace(DENSE, weights="ternary"), "layer 1 has ternary weights.*block_configs cannot"),
        ({"norm_top_k": True}, replace(DENSE, experts=4, top_k=2), "layer 1 has experts; block_configs cannot"),
        ({"router": "sigmoid"}, replace(DENSE, experts=4, top_k=2), "sigmoid router.*block_configs cannot"),
    ],
)
def test_what_the_layout_cannot_say_is_refused_and_nothing_is_written(options, layer, message, tmp_path):
    model = scrambled(FixedShape(replace(BASE, **options), Architecture(32, (DENSE, layer))))
    for name, buffer in model.named_buffers():
        if name.endswith("balance"):
            buffer.zero_()
    with pytest.raises(UserError, match=message) as refused:
        export_hf(model, tmp_path / "blocks", tokenizer_path=None, card=CARD, layout=lay_out_blocks)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_the_verb_writes_a_folder_beside_the_usual_one(copied, llmnas, in_this_process):
    in_this_process(hf)

    def export(*options):
        return llmnas("export", copied.config, "--run-dir", copied.folder, "--format", "block_configs", *options)

    before = {path.name for path in (copied.folder / "export").iterdir()}
    done = export()
    assert done.code == 0, done.err
    assert "DeciLMForCausalLM" in done.out
    (folder,) = (path for path in (copied.folder / "export").iterdir() if path.name not in before)
    assert folder.name.endswith("-block_configs")
    assert export().code == 2
    assert "--format block_configs: not with --elastic" in export("--elastic").complaint
    assert export("--force").code == 0
    said = llmnas("generate", folder, "--prompt", "The state of", "--tokens", "4", "--temperature", "0")
    assert said.code == 0, said.err
    usual = llmnas("generate", copied.folder, "--prompt", "The state of", "--tokens", "4", "--temperature", "0")
    assert said.out == usual.out
