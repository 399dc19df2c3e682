"""Stock models become the largest network: equal logits; and what does not fit is refused in one line."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from train_script import SETTINGS, SPACE
from transformers import AutoConfig, AutoModelForCausalLM

from llmnas.errors import UserError
from llmnas.space import SearchSpace
from llmnas.supernet import Transformer, save_weights
from llmnas.train.engine import Engine, build, start_processes
from llmnas.train.warmstart import check_pretrained, read_pretrained, warm_start

SIZES = {
    "vocab_size": 60, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 32,
}  # fmt: skip
FAMILIES = {
    "llama": {"attention_bias": False},
    "mistral": {"sliding_window": None, "tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "qwen2": {},
    "seed_oss": {"attention_bias": True, "attention_out_bias": False},
    "smollm3": {"no_rope_layers": [1, 0, 1], "use_sliding_window": False, "pad_token_id": None},
}


def stock(folder, family="llama", **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family], **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "bias" in name and "o_proj" not in name:
                parameter.normal_()
    model.save_pretrained(folder)
    return model


def supernet_of(pretrained, **changes):
    (_, spec) = pretrained.arch.kept[0]
    space = SearchSpace.from_dict(
        {
            "base": pretrained.base.__dict__,
            "layers": pretrained.arch.depth,
            "hidden_size": sorted({12, pretrained.arch.hidden_size}),
            "depth": [2, pretrained.arch.depth],
            "kv_heads": sorted({1, spec.kv_heads}),
            "queries_per_group": sorted({1, spec.queries_per_group}),
            "head_dim": spec.head_dim,
            "ffn_size": sorted({12, spec.ffn_size}),
            **changes,
        }
    )
    return Transformer(space, seed=1)


@pytest.mark.parametrize(("window", "most"), [(None, 32), (16, 16), (64, 32)])
def test_a_sliding_window_bounds_the_text(tmp_path, window, most):
    """Within the window a model that has one is one without; beyond it, it is another."""
    model = stock(tmp_path, "mistral", sliding_window=window)
    pretrained = read_pretrained(tmp_path)
    assert pretrained.base.max_seq == most
    supernet = supernet_of(pretrained)
    warm_start(supernet, pretrained)
    tokens = torch.arange(2 * most).view(2, most) % SIZES["vocab_size"]
    with torch.no_grad():
        torch.testing.assert_close(supernet(tokens), model(tokens).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", ["leading", "spread"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_largest_network_is_the_stock_model(tmp_path, family, order):
    model = stock(tmp_path, family)
    check_pretrained(tmp_path)
    pretrained = read_pretrained(tmp_path, order)
    supernet = supernet_of(pretrained)
    warm_start(supernet, pretrained)
    tokens = torch.arange(26).view(2, 13)
    with torch.no_grad():
        expected = model(tokens).logits
        torch.testing.assert_close(supernet(tokens), expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0.05


def test_shards_are_read(tmp_path):
    model = stock(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    pretrained = read_pretrained(tmp_path)
    supernet = supernet_of(pretrained)
    warm_start(supernet, pretrained)
    tokens = torch.arange(10)[None]
    torch.testing.assert_close(supernet(tokens), model(tokens).logits, rtol=1e-4, atol=1e-5)


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2': positions are learned vectors"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "Missing required keys in `rope_parameters`"),
        ({"rope_parameters": {"rope_type": "axial", "rope_theta": 1e4}}, "rope_type = 'axial' is not supported"),
        ({"mlp_bias": True}, "mlp_bias = True is not supported"),
        ({"num_hidden_layers": 4}, "layer 3: a weight is missing"),
        ({"num_hidden_layers": 2}, "weights that no layer here has: model.layers.2"),
        ({"num_key_value_heads": 3}, r"layers.0.attention.k.weight is \[16, 24\], config.json asks for \[24, 24\]"),
        ({"vocab_size": None}, "not the config of a llama model .*vocab_size"),
        ({"vocab_size": 10**30}, "vocab_size = 10*, must be a whole number"),
        ({"hidden_act": ["silu"]}, "not the config of a llama model .*hidden_act"),
        ({"max_position_embeddings": None}, "not the config of a llama model .*max_position_embeddings"),
        ({"max_position_embeddings": 1}, "max_position_embeddings = 1, must be a whole number from 2"),
        ({"model_type": "mistral", "sliding_window": 1}, "sliding_window = 1, must be a whole number from 2"),
        ({"num_attention_heads": 3}, r"layers.0.attention.o.weight is \[24, 48\], config.json asks for \[24, 16\]"),
        ({"num_attention_heads": 0}, "not the config of a llama model"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 10*, must be a whole number from 1 to 10000"),
        ({"rms_norm_eps": "small"}, "not the config of a llama model"),
        ({"rope_parameters": {"rope_theta": 10**400}}, "not the config of a llama model"),
        ({"vocab_size": 7}, r"embedding.weight is \[\d+, 24\], config.json asks for \[7, 24\]"),
        ({"intermediate_size": 8}, r"layers.0.ffn.gate.weight is \[\d+, 24\], config.json asks for \[8, 24\]"),
        ({"rope_parameters": "default"}, "not the config of a llama model"),
    ],
)
def test_other_models_are_refused(tmp_path, values, message):
    stock(tmp_path)
    change(tmp_path, **values)
    for read in (read_pretrained, check_pretrained):
        with pytest.raises(UserError, match=message) as error:
            read(tmp_path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "[]", "config.json: must hold a JSON object"),
        ("config.json", "{", "config.json: not JSON"),
        ("model.safetensors.index.json", "[]", "index.json: must hold a JSON object"),
        ("model.safetensors.index.json", "{}", "index.json: no weight_map"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 1}}', "index.json: no weight_map"),
    ],
)
def test_damaged_descriptions_are_named_and_nobody_is_told_to_delete_a_model(tmp_path, name, text, message):
    stock(tmp_path)
    (tmp_path / name).write_text(text)
    if "index" in name:
        (tmp_path / "model.safetensors").unlink()  # it would win
    with pytest.raises(UserError, match=message) as error:
        read_pretrained(tmp_path)
    assert "\n" not in str(error.value)
    assert "delete" not in str(error.value)


def test_damaged_and_missing_weights_are_named(tmp_path):
    stock(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"model.safetensors: damaged weights"):
        read_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"model.safetensors: no such file; weights must be safetensors"):
        read_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": [12, 16]}, "must be the pretrained model: 24 wide"),
        ({"ffn_size": 24}, "must be the pretrained model"),
        ({"weights": ["ternary", "dense"]}, "no weights for layers.0.attention.inner_norm"),
    ],
)
def test_another_space_is_refused_with_both_sizes(tmp_path, changes, message):
    stock(tmp_path)
    pretrained = read_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        warm_start(supernet_of(pretrained, **changes), pretrained)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_model_is_built_from_stored_weights_at_either_end(tmp_path, stage):
    """At stage 3 it is partitioned from the start and read one parameter at a time."""
    stored = Transformer(SPACE, seed=7)
    save_weights(stored, tmp_path / "initial.safetensors")
    settings = SETTINGS.model_copy(update={"zero_stage": stage, "steps": 1})
    processes = start_processes()
    model = build(SPACE, 0, settings, processes, tmp_path / "initial.safetensors")
    engine = Engine(model, settings, processes)
    engine.release()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value.detach().cpu(), stored.state_dict()[name], rtol=0, atol=0)
    wider = SearchSpace.from_dict({**SPACE.model_dump(), "hidden_size": [32, 64]})
    with pytest.raises(UserError, match="of another search space"):
        build(wider, 0, settings, processes, tmp_path / "initial.safetensors")
