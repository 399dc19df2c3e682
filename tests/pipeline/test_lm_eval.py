"""Exports under `lm_eval --model hf`, on a task made here from real text, offline."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import tiny
import torch
import yaml
from strategies import scrambled
from tokenizers import Tokenizer

from llmnas.export import Card
from llmnas.export.block_configs import lay_out_blocks
from llmnas.export.hf import write_checkpoint
from llmnas.export.layout import lay_out
from llmnas.pipeline.exported import exported_folder
from llmnas.runs import RunFolder
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec

TASK = {
    "task": "local_speeches",
    "dataset_path": "json",
    "output_type": "loglikelihood_rolling",
    "test_split": "test",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    "metadata": {"version": 1.0},
}


def paragraphs(length):
    """The beginnings of four paragraphs of a speech."""
    speech = sorted(tiny.SPEECHES.glob("*.txt"))[0].read_text(encoding="utf-8")
    return [line[:length].strip() for line in speech.splitlines() if len(line) > 100][:4]


def bits_per_byte(folder, texts, work, *more):
    """What `lm_eval --model hf` says of an exported folder."""
    data = work / "test.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    task = {**TASK, "dataset_kwargs": {"data_files": {"test": str(data)}}}
    (work / "local_speeches.yaml").write_text(yaml.safe_dump(task))
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={folder},dtype=float32",
         "--tasks", "local_speeches", "--include_path", str(work), "--device", "cpu", "--batch_size", "1",
         "--output_path", str(work / "out"), *more],
        capture_output=True, text=True, cwd=work,
        env=tiny.environment(
            HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_DATASETS_CACHE=str(work / "cache"),
            HF_MODULES_CACHE=str(work / "modules"),
        ),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = (work / "out").rglob("results_*.json")
    return json.loads(found.read_text())["results"]["local_speeches"]["bits_per_byte,none"]


@pytest.mark.full
def test_lm_eval_runs_on_an_export(tiny_run, tmp_path):
    # 300 tokens, hardly trained: between good text (1) and random bytes (8)
    assert 2 < bits_per_byte(exported_folder(tiny_run.folder), paragraphs(None), tmp_path) < 8


BASE = BaseModel(vocab_size=300, rope_dim=8, max_seq=128, norm_top_k=True)
DENSE = LayerSpec(2, 2, 8, 32)
MOE = replace(DENSE, experts=4, top_k=2)
CASES = {
    "Qwen3MoeForCausalLM": (replace(BASE, qk_norm=True), (MOE, DENSE, MOE), lay_out),
    "MixtralForCausalLM": (BASE, (MOE, MOE), lay_out),
    # the binary layer is stored packed, inputs of 32 cut a group of ternary ones
    "LlmnasForCausalLM": (
        BASE,
        (replace(DENSE, weights="ternary"), replace(DENSE, mixer="mlgru"), replace(DENSE, weights="binary"), MOE),
        lay_out,
    ),
    "DeciLMForCausalLM": (BASE, (DENSE, LayerSpec(1, 4, 4, 48), replace(DENSE, mixer="none")), lay_out_blocks),
}


@pytest.mark.full
@pytest.mark.parametrize("name", CASES)
def test_lm_eval_measures_our_networks_own_loss(name, tiny_run, tmp_path):
    """Every paragraph fits into the longest sequence, so that lm_eval reads it in one piece after the end of text."""
    base, layers, lay = CASES[name]
    model = scrambled(FixedShape(base, Architecture(32, layers))).eval()
    for buffer, values in model.named_buffers():
        if buffer.endswith("balance"):
            values.zero_()
    (tmp_path / "export").mkdir()
    tokenizer = RunFolder(tiny_run.folder).tokenizer
    card = Card(name=name, metrics={}, data="speeches", seed=1, trained_tokens=0)
    assert write_checkpoint(model, tmp_path / "export", tokenizer, card, lay=lay).class_name == name
    nats, texts = 0.0, paragraphs(120)
    for text in texts:
        ids = torch.tensor([[0, *Tokenizer.from_file(str(tokenizer)).encode(text).ids]])
        assert 8 < ids.shape[1] <= base.max_seq
        with torch.no_grad():
            nats -= model(ids)[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).sum().item()
    wanted = nats / math.log(2) / sum(len(text.encode()) for text in texts)
    trust = ["--trust_remote_code"] if name in {"LlmnasForCausalLM", "DeciLMForCausalLM"} else []
    assert bits_per_byte(tmp_path / "export", texts, tmp_path, *trust) == pytest.approx(wanted, rel=1e-4)
