"""What is cut out of a pretrained model computes the same as a checkpoint: stretched positions, families, dtype."""

import json

import pytest
import torch
from safetensors.torch import load_file
from stock_models import alone, stock
from transformers import AutoModelForCausalLM

from llmnas.export import Card
from llmnas.export.hf import rounded, write_checkpoint
from llmnas.export.modeling_llmnas import LlmnasForCausalLM
from llmnas.space import Architecture, LayerSpec
from llmnas.supernet import extract
from llmnas.train.warmstart import read_pretrained

CARD = Card("cut", {}, "text", 0, 0)
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 500.0,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4, "beta_fast": 8.0}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.3, 1.7, 2.0], "long_factor": [2.0] * 4}
THREE = {"factor": 3.0, "rope_theta": 1e4}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
CASES = {
    "llama3": ("llama", {"rope_parameters": LLAMA3}, "LlamaForCausalLM"),
    "llama3 and QK norm": ("qwen3", {"rope_parameters": LLAMA3}, "Qwen3ForCausalLM"),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", **THREE}}, "LlamaForCausalLM"),
    "dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", **THREE}}, "LlamaForCausalLM"),
    "yarn": ("llama", {"rope_parameters": YARN}, "LlamaForCausalLM"),
    "longrope": (
        "phi3",
        {
            "rope_parameters": LONG, "original_max_position_embeddings": 40, "num_attention_heads": 3,
            "num_key_value_heads": 1, "pad_token_id": None,
        },
        "LlamaForCausalLM",
    ),
    "smollm3": ("smollm3", {"no_rope_layers": [0, 0, 1], "pad_token_id": None}, "SmolLM3ForCausalLM"),
    "olmo3": (
        "olmo3",
        {"num_attention_heads": 3, "num_key_value_heads": 1, "pad_token_id": None, "layer_types": SLIDING},
        "LlmnasForCausalLM",
    ),
    "gemma3": ("gemma3_text", {"layer_types": SLIDING, "pad_token_id": None}, "LlmnasForCausalLM"),
    "glm4": ("glm4", {"attention_bias": True, "pad_token_id": None}, "LlmnasForCausalLM"),
}  # fmt: skip


@pytest.mark.parametrize("order", ["leading", "spread"])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_cut_out_network_is_the_same_as_a_checkpoint(tmp_path, case, order):
    """Without the first layer, with narrower parts; heads of fewer channel pairs are padded where they must be."""
    family, changes, class_name = CASES[case]
    stock(tmp_path / "model", family, **changes)
    pretrained = read_pretrained(tmp_path / "model", order)
    spec = pretrained.arch.kept[0][1]
    smaller = LayerSpec(spec.kv_heads, 1, spec.head_dim // 2, 16)
    for arch in (Architecture(16, (None, smaller, smaller)), Architecture(24, (spec, None, spec))):
        cut = extract(alone(pretrained), arch)
        folder = tmp_path / f"export-{arch.id}"
        folder.mkdir()
        assert write_checkpoint(rounded(cut, torch.float32), folder, None, CARD).class_name == class_name
        own = class_name == "LlmnasForCausalLM"
        loaded = (
            (LlmnasForCausalLM if own else AutoModelForCausalLM).from_pretrained(folder, dtype=torch.float32).eval()
        )
        tokens = torch.randint(60, (2, min(64, cut.base.max_seq)), generator=torch.Generator().manual_seed(0))
        expected = cut(tokens)
        assert (loaded(tokens).logits - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_kept_where_it_is_exact(tmp_path, dtype):
    stock(tmp_path / "model")
    pretrained = read_pretrained(tmp_path / "model")
    spec = pretrained.arch.kept[0][1]
    padded = Architecture(24, (LayerSpec(1, 3, 8, 20), spec))  # heads of zeros: nothing changes
    for arch, name in ((Architecture(16, (spec,)), "exact"), (padded, "padded")):
        model = rounded(
            extract(alone(pretrained), Architecture(arch.hidden_size, (*arch.layers, None, None)[:3])), dtype
        )
        (tmp_path / name).mkdir()
        write_checkpoint(model, tmp_path / name, None, CARD, dtype=dtype)
        assert {w.dtype for w in load_file(tmp_path / name / "model.safetensors").values()} == {dtype}
        assert json.loads((tmp_path / name / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
        tokens, stored = torch.arange(40).view(1, -1), AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert stored.dtype == dtype
        expected = model(tokens)
        assert (stored.float()(tokens).logits - expected).abs().max() < 1e-5 * expected.abs().max()
    wider = Architecture(24, (LayerSpec(1, 1, 6, 20), LayerSpec(1, 1, 8, 20), None))  # q grows by sqrt(8 / 6)
    model = rounded(extract(alone(pretrained), wider), dtype)
    (tmp_path / "widened").mkdir()
    write_checkpoint(model, tmp_path / "widened", None, CARD, dtype=dtype)
    assert json.loads((tmp_path / "widened" / "config.json").read_text())["dtype"] == "float32"
