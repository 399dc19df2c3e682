"""A stranger's folder is read exactly as transformers reads it, or refused in one line that says what to do."""

import json
import struct
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from stock_models import alone, change, difference, stock

from llmnas.cost import count_params
from llmnas.errors import UserError
from llmnas.space import Architecture
from llmnas.supernet import extract
from llmnas.supernet.importance import importance, reorder
from llmnas.train.warmstart import check_pretrained, read_pretrained, read_shape

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
ROPES = {
    "llama3": LLAMA3,
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "yarn": YARN,
    "yarn, ends as they are": {**YARN, "truncate": False, "beta_fast": 8.0},
    "yarn, given": {**YARN, "attention_factor": 0.7},
    "yarn, weighed": {**YARN, "mscale": 1.2, "mscale_all_dim": 0.6},
}


def rewrite(folder, changes, drop=()):
    """The weights of a folder with others among them."""
    weights = {name: weight for name, weight in load_file(folder / WEIGHTS).items() if name not in drop}
    save_file({**weights, **changes}, folder / WEIGHTS)


def refused(folder):
    for read in (check_pretrained, read_pretrained):
        with pytest.raises(UserError) as error:
            read(folder)
        assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("style", ["v4", "v5"])
@pytest.mark.parametrize("kind", ROPES)
def test_stretched_positions(tmp_path, kind, style):
    """Both styles of config; in both orders of pairs, and off by much more without the scaling."""
    rope = {**ROPES[kind], "rope_theta": 1000.0}
    stock(tmp_path, rope_parameters=rope)
    if style == "v4":
        old = {("type" if key == "rope_type" else key): value for key, value in ROPES[kind].items()}
        change(tmp_path, drop=["rope_parameters"], rope_scaling=old, rope_theta=1000.0)
    for order in ("leading", "spread"):
        assert difference(tmp_path, order) < 1e-5
    assert read_shape(tmp_path)[0].rope_scaling.kind == kind.split(",")[0]


def test_rope_scaling_wins_over_rope_parameters(tmp_path):
    stock(tmp_path)
    change(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 1e4}, rope_scaling=LLAMA3, rope_theta=500.0)
    assert difference(tmp_path) < 1e-5
    base, _ = read_shape(tmp_path)
    assert (base.rope_scaling.kind, base.rope_theta) == ("llama3", 500.0)


@pytest.mark.parametrize("differs", [True, False])
def test_a_stored_head_is_kept_where_it_differs(tmp_path, differs):
    stock(tmp_path, tie_word_embeddings=True)
    embedding = load_file(tmp_path / WEIGHTS)["model.embed_tokens.weight"]
    rewrite(tmp_path, {"lm_head.weight": embedding.flip(0).clone() if differs else embedding.clone()})
    assert difference(tmp_path) < 1e-5
    assert read_shape(tmp_path)[0].tied is not differs


def test_a_tied_model_may_be_stored_by_its_head(tmp_path):
    stock(tmp_path, tie_word_embeddings=True)
    embedding = load_file(tmp_path / WEIGHTS)["model.embed_tokens.weight"]
    rewrite(tmp_path, {"lm_head.weight": embedding.clone()}, drop=["model.embed_tokens.weight"])
    assert difference(tmp_path) < 1e-5


@pytest.mark.parametrize("shards", ["there", "gone"])
def test_a_single_file_wins_over_an_index(tmp_path, shards):
    stock(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    if shards == "there":
        save_file({name: weight + 1 for name, weight in weights.items()}, tmp_path / "a.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(weights, "a.safetensors")}))
    assert difference(tmp_path) < 1e-5


def test_frequencies_that_old_files_carry_are_left_out(tmp_path):
    stock(tmp_path)
    old = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(3)}
    rewrite(tmp_path, old | {"model.rotary_emb.inv_freq": torch.ones(4)})
    assert difference(tmp_path) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_remembered(tmp_path, dtype):
    stock(tmp_path)
    rewrite(tmp_path, {name: weight.to(dtype) for name, weight in load_file(tmp_path / WEIGHTS).items()})
    assert difference(tmp_path) < 1e-5
    assert read_pretrained(tmp_path).dtype == dtype


def test_a_folder_that_brings_code_is_read_by_the_stock_class(tmp_path):
    stock(tmp_path)
    trap = tmp_path / "ran"
    (tmp_path / "modeling_x.py").write_text(f"open({str(trap)!r}, 'w')\n")
    change(tmp_path, auto_map={"AutoConfig": "modeling_x.Config", "AutoModelForCausalLM": "modeling_x.Model"})
    assert difference(tmp_path) < 1e-5
    change(tmp_path, model_type="strange")
    assert "the code that it names (auto_map) is not run" in refused(tmp_path)
    assert not trap.exists()


def test_biases_on_the_output_are_found_by_looking(tmp_path):
    stock(tmp_path, attention_bias=True)
    assert difference(tmp_path) < 1e-5  # zero as transformers makes them
    rewrite(tmp_path, {"model.layers.1.self_attn.o_proj.bias": torch.ones(24)})
    assert "layer 1: a bias on the output projection is not supported" in refused(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(tmp_path, value):
    stock(tmp_path)
    broken = load_file(tmp_path / WEIGHTS)["model.norm.weight"]
    broken[3] = value
    rewrite(tmp_path, {"model.norm.weight": broken})
    with pytest.raises(UserError, match=r"model.norm.weight holds NaN or infinity"):
        read_pretrained(tmp_path)


NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.bool, "BOOL"), (torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")]
)
def test_numbers_that_are_no_floats(tmp_path, dtype, name):
    stock(tmp_path)
    rewrite(tmp_path, {NAME: torch.ones(20, 24).to(dtype)})
    assert f"{NAME} is stored as {name}; allowed: F64, F32, F16, BF16" in refused(tmp_path)


def raw(path, header, data=b""):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "Q3"])
def test_formats_that_the_library_does_not_know(tmp_path, dtype):
    stock(tmp_path)
    raw(tmp_path / WEIGHTS, {NAME: {"dtype": dtype, "shape": [8], "data_offsets": [0, 8]}}, bytes(8))
    assert f"{NAME} is stored as {dtype}; allowed: F64, F32, F16, BF16" in refused(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        {NAME: {"dtype": "F32", "shape": [2], "data_offsets": [0, 80]}},
        {NAME: {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {NAME: {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
        {NAME: {"dtype": "F32", "shape": "ab", "data_offsets": [0, 8]}},
        {NAME: {"dtype": 3, "shape": [2], "data_offsets": [0, 8]}},
        {NAME: {"dtype": "F32", "shape": [2]}},
        {NAME: 3},
        [],
    ],
)
def test_damaged_lists_of_tensors(tmp_path, header):
    stock(tmp_path)
    raw(tmp_path / WEIGHTS, header, bytes(8))
    assert "model.safetensors: damaged weights" in refused(tmp_path)


def test_a_file_of_endless_tensors_is_refused_at_once(tmp_path):
    stock(tmp_path)
    raw(tmp_path / WEIGHTS, {f"{i}": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]} for i in range(400_000)})
    begin = time.process_time()
    assert "its list of tensors takes" in refused(tmp_path)
    assert time.process_time() - begin < 2  # three readings; the list alone takes the library six seconds


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("pytorch_model.bin", "holds pickles, which are never opened here"),
        ("pytorch_model-00001-of-00002.bin", "save_pretrained() it as safetensors"),
        ("model.Q4_0.gguf", "holds a GGUF file"),
        ("consolidated.00.pth", "holds weights in Meta's own format"),
    ],
)
def test_other_weights_are_named_with_what_to_do(tmp_path, file, words):
    stock(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / file).write_bytes(b"x")
    assert words in refused(tmp_path)


def test_adapters_and_quantised_models_are_named_with_what_to_do(tmp_path):
    stock(tmp_path)
    change(tmp_path, quantization_config={"quant_method": "fp8"})
    assert "the weights are quantised (fp8); load the model with transformers, dequantize() it" in refused(tmp_path)
    change(tmp_path, quantization_config="int4")
    assert "the weights are quantised (int4)" in refused(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "holds a LoRA adapter, no model of its own; merge it into its base model" in refused(tmp_path)


FAMILIES = {
    "ministral": {"layer_types": ["sliding_attention", "full_attention", "full_attention"], "sliding_window": 32},
    "granite": {
        "embedding_multiplier": 12.0, "logits_scaling": 0.2, "residual_multiplier": 0.22, "attention_multiplier": 0.2,
        "tie_word_embeddings": True, "num_attention_heads": 3, "num_key_value_heads": 1,
    },
    "granite, its own head": {
        "embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22, "attention_multiplier": 0.2,
        "num_attention_heads": 3, "num_key_value_heads": 1,
    },
    "phi3": {"num_attention_heads": 3, "num_key_value_heads": 3, "pad_token_id": None, "sliding_window": 48},
    "phi3, a part turns and is stretched": {
        "num_attention_heads": 3, "num_key_value_heads": 1, "pad_token_id": None, "partial_rotary_factor": 0.5,
        "original_max_position_embeddings": 40,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.7], "long_factor": [2.0, 9.0],
            "partial_rotary_factor": 0.5,
        },
    },
    "ernie4_5": {"tie_word_embeddings": True},
    "glm": {"attention_bias": True, "pad_token_id": None},
    "glm4": {"attention_bias": True, "pad_token_id": None},
    "olmo2": {"num_attention_heads": 3, "num_key_value_heads": 1, "pad_token_id": None},
    "olmo3": {
        "num_attention_heads": 3, "num_key_value_heads": 1, "pad_token_id": None, "sliding_window": 48,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "exaone4": {
        "sliding_window": 48, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "sliding_window_pattern": 2,
    },
    "gemma": {"pad_token_id": None, "hidden_act": "gelu_pytorch_tanh"},
    "gemma3_text": {
        "sliding_window": 48, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "query_pre_attn_scalar": 5, "pad_token_id": None,
    },
    "cohere": {"num_attention_heads": 3, "num_key_value_heads": 1, "logit_scale": 5.0, "pad_token_id": None},
    "cohere2": {
        "sliding_window": 48, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "logit_scale": 5.0, "pad_token_id": None,
    },
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip


def as_transformers_4(folder):
    """Rotary positions at the top of config.json."""
    rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
    top = {}
    if "sliding_attention" in rope:
        top["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    top |= {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    if rope["rope_type"] != "default":
        top["rope_scaling"] = {"type": rope["rope_type"]} | {k: v for k, v in rope.items() if k.endswith("_factor")}
        top["rope_scaling"].pop("partial_rotary_factor", None)
    change(folder, drop=["rope_parameters"], **top)


@pytest.mark.parametrize("case", FAMILIES)
def test_families_equal_transformers(tmp_path, case):
    """In both orders of rotary pairs and both styles of config, with exactly as many parameters as are counted."""
    stock(tmp_path, case.split(",")[0], **FAMILIES[case])
    for order in ("leading", "spread"):
        assert difference(tmp_path, order) < 1e-5
    pretrained = read_pretrained(tmp_path)
    as_transformers_4(tmp_path)
    assert difference(tmp_path) < 1e-5
    assert read_shape(tmp_path)[0] == pretrained.base
    model = alone(pretrained)
    assert sum(p.numel() for p in model.parameters()) == count_params(pretrained.arch, pretrained.base).total


@pytest.mark.parametrize("case", ["gemma3_text", "olmo3", "exaone4", "glm4", "cohere2", "qwen3_moe"])
def test_parts_of_families_are_reordered_and_cut_out(tmp_path, case):
    """Sorting by importance changes nothing; a cut-out network computes what it did inside, without two layers too."""
    stock(tmp_path, case, **FAMILIES[case])
    pretrained = read_pretrained(tmp_path)
    model = alone(pretrained)
    tokens = torch.randint(60, (2, 20), generator=torch.Generator().manual_seed(1))
    before = model(tokens)
    reorder(model, importance(model, [tokens]))
    torch.testing.assert_close(model(tokens), before, rtol=1e-4, atol=1e-4)
    spec = pretrained.arch.kept[0][1]
    small = replace(spec, ffn_size=8, queries_per_group=max(1, spec.queries_per_group - 1))
    arch = Architecture(16, (None, small, replace(small, head_dim=4)))
    with torch.no_grad():
        torch.testing.assert_close(extract(model, arch)(tokens), model(tokens, arch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        ("cohere", {"use_qk_norm": True}, "use_qk_norm = True is not supported"),
        ("starcoder2", {}, "its feed-forward has no gate"),
        ("gemma2", {}, "soft caps on attention scores"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0 is not supported"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, r"mlp_only_layers = \[1\] is not supported"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step must be 1"),
        ("ernie4_5", {"use_bias": True}, "use_bias = True is not supported"),
        ("gemma", {"hidden_act": "relu"}, "hidden_act = 'relu' is not supported"),
    ],
)
def test_families_that_are_not_computed_here_say_why(tmp_path, kind, values, words):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **values}))
    with pytest.raises(UserError, match=words) as error:
        read_shape(tmp_path)
    assert "\n" not in str(error.value)
