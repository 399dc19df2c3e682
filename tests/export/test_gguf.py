"""GGUF files, read back with gguf's own reader, and run by llama.cpp where a package brings it."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import tiny
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from strategies import random_tokens, scrambled
from transformers import LlamaConfig

from llmnas.errors import RunError, UserError
from llmnas.export.gguf import check_gguf, neighbours, write_gguf
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec

BASE = BaseModel(vocab_size=300, rope_dim=32, max_seq=64, norm_top_k=True)
UNIFORM = Architecture(64, (LayerSpec(2, 2, 16, 96),) * 2)
MIXED = Architecture(64, (LayerSpec(1, 4, 32, 96), LayerSpec(2, 1, 16, 64), LayerSpec(1, 1, 2, 32, mixer="none")))
EXPERTS = Architecture(64, (LayerSpec(2, 2, 16, 32, experts=4, top_k=2),) * 2)
TERNARY = Architecture(256, (LayerSpec(2, 4, 32, 256, weights="ternary"),) * 2)
CASES = {
    "llama": (BASE, UNIFORM),
    "llama-bias": (replace(BASE, qkv_bias=True, tied=False), MIXED),
    "deci": (BASE, MIXED),
    "mixtral": (BASE, EXPERTS),
    "qwen3": (replace(BASE, qk_norm=True), MIXED),
    "qwen3-bias": (replace(BASE, qk_norm=True, qkv_bias=True), MIXED),
    "qwen3moe": (replace(BASE, qk_norm=True), EXPERTS),
    "bitnet": (BASE, TERNARY),
}
ARCH = {"llama-bias": "llama", "mixtral": "llama", "qwen3-bias": "qwen3"}


def model_of(case):
    base, arch = CASES[case]
    model = scrambled(FixedShape(base, arch)).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("balance"):
            buffer.zero_()
    return model


@pytest.mark.parametrize("case", CASES)
def test_a_file_reads_back_as_written(case, tokenizer_path, tmp_path):
    model, path = model_of(case), tmp_path / "model.gguf"
    held = write_gguf(model, path, tokenizer_path=tokenizer_path, name=case)
    fields = GGUFReader(path).fields
    assert fields["general.architecture"].contents() == held.arch == ARCH.get(case, case)
    tokens = fields["tokenizer.ggml.tokens"].contents()
    vocabulary = json.loads(tokenizer_path.read_text())["model"]["vocab"]
    assert len(tokens) == 300
    assert all(tokens[i] == text for text, i in vocabulary.items())
    heads = fields[f"{held.arch}.attention.head_count"].contents()
    if case == "deci":
        assert heads == [4, 2, 1]
        assert fields["deci.attention.head_count_kv"].contents() == [1, 2, 1]
        assert fields["deci.feed_forward_length"].contents() == [96, 64, 32]
    else:
        assert heads == held.shapes[0].spec.q_heads


@pytest.mark.parametrize("ternary", ["tq1_0", "tq2_0"])
def test_ternary_codes_and_scales_are_exact(ternary, tmp_path):
    model = model_of("bitnet")
    write_gguf(model, tmp_path / "model.gguf", tokenizer_path=None, name="t", ternary=ternary)
    found = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    gate, scale = found["blk.1.ffn_gate.weight"], found["blk.1.ffn_gate.scale"]
    assert gate.tensor_type == GGMLQuantizationType[ternary.upper()]
    weight = model.layers[1].ffn.gate.weight.detach()
    gamma = weight.abs().mean()
    assert scale.data.tolist() == [gamma.item()]
    assert torch.equal(torch.from_numpy(dequantize(gate.data, gate.tensor_type)), (weight / gamma).round().clamp(-1, 1))


def test_a_changed_tensor_is_seen(tmp_path):
    path = tmp_path / "model.gguf"
    held = write_gguf(model_of("llama"), path, tokenizer_path=None, name="m")
    held.tensors["blk.0.ffn_up.weight"][0, 0] += 1
    with pytest.raises(RunError, match=r"blk\.0\.ffn_up\.weight does not read back"):
        check_gguf(path, held)


def test_neighbours_are_llama_cpps_permutation():
    config = LlamaConfig(hidden_size=6, num_attention_heads=2, head_dim=8)
    weight = torch.arange(16 * 6.0).view(16, 6)
    # the formula of llama.cpp's converter
    wanted = weight.reshape(config.num_attention_heads, 2, 4, 6).swapaxes(1, 2).reshape(16, 6)
    assert torch.equal(neighbours(weight, 2), wanted)
    assert neighbours(weight, 2)[:4, 0].tolist() == [0, 24, 6, 30]


@pytest.mark.parametrize(
    ("base", "arch", "message"),
    [
        (BASE, Architecture(64, (LayerSpec(1, 1, 8, 8, mixer="mlgru"),)), "mixer mlgru"),
        (replace(BASE, norm_top_k=False, qk_norm=True), EXPERTS, "renormalises the weights"),
        (replace(BASE, qk_norm=True), Architecture(64, (*EXPERTS.layers, *UNIFORM.layers)), "here some have none"),
        (BASE, Architecture(64, (LayerSpec(2, 2, 16, 96, weights="ternary"),)), "256 weights, hidden_size is 64"),
        (replace(BASE, tied=False), TERNARY, "ties its head"),
    ],
)  # fmt: skip
def test_what_llama_cpp_does_not_compute_is_refused(base, arch, message, tmp_path):
    model = scrambled(FixedShape(base, arch))
    for name, buffer in model.named_buffers():
        if name.endswith("balance"):
            buffer.zero_()
    with pytest.raises(UserError, match=message):
        write_gguf(model, tmp_path / "model.gguf", tokenizer_path=None, name="m")
    assert not (tmp_path / "model.gguf").exists()


RUN = """
import json, sys, xllamacpp
path, ids = sys.argv[1], json.loads(sys.argv[2])
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.warmup, params.n_parallel = path, 64, False, 1
params.cpuparams.n_threads = 1
# half-precision keys and values would tip over many 8-bit activations of a ternary network
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(params)
found = server.handle_completions({"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": 300})
text = server.handle_completions({"prompt": "fellow citizens of the", "n_predict": 8, "temperature": 0})
print("FOUND" + json.dumps([found, text]))
"""


@pytest.mark.full
@pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="needs llama.cpp: pip install llmnas[llama-cpp]"
)
@pytest.mark.parametrize(("case", "ternary"), [*((case, None) for case in CASES), ("bitnet", "tq1_0")])
def test_llama_cpp_gives_our_probabilities(case, ternary, tokenizer_path, tmp_path):
    model, path = model_of(case), tmp_path / "model.gguf"
    write_gguf(model, path, tokenizer_path=tokenizer_path, name=case, ternary=ternary)
    tokens = random_tokens(model.base, batch=1, seq=40)
    done = subprocess.run(
        [sys.executable, "-c", RUN, path, json.dumps(tokens[0].tolist())],
        capture_output=True, text=True, env=tiny.environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found, text = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND"))[5:])
    with torch.no_grad():
        wanted = model(tokens)[0, -1].log_softmax(-1)
    top = found["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    difference = max(abs(entry["logprob"] - float(wanted[entry["id"]])) for entry in top)
    assert len(top) > 250
    # llama.cpp rounds the activations of ternary products in blocks, ours by token
    assert difference <= (0.2 if case == "bitnet" else 5e-3)
    assert text["choices"][0]["text"]


def test_the_verb_writes_a_file_and_refuses_to_replace_it(copied, llmnas):
    def export(*options):
        return llmnas("export", copied.config, "--run-dir", copied.folder, "--format", "gguf", *options)

    done = export()
    assert done.code == 0, done.err
    (file,) = (copied.folder / "export").glob("*.gguf")
    before = file.read_bytes()
    assert export().code == 2
    assert export("--elastic").code == 2
    assert "this network has none" in export("--force", "--ternary", "tq1_0").complaint
    alone = llmnas("export", copied.config, "--run-dir", copied.folder, "--ternary", "tq1_0")
    assert "--ternary tq1_0: only with --format gguf" in alone.complaint
    assert export("--force").code == 0
    assert file.read_bytes() == before
    assert not list((copied.folder / "export").glob(".*"))
