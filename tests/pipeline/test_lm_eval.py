"""An export under `lm_eval --model hf`, on a task made here from real text, offline."""

import json
import subprocess
import sys

import pytest
import tiny
import yaml

from llmnas.pipeline.export import exported_folder

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


@pytest.mark.full
def test_lm_eval_runs_on_an_export(tiny_run, tmp_path):
    speech = sorted(tiny.SPEECHES.glob("*.txt"))[0].read_text(encoding="utf-8")
    data = tmp_path / "test.jsonl"
    paragraphs = [line for line in speech.splitlines() if len(line) > 100][:4]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in paragraphs), encoding="utf-8")
    task = {**TASK, "dataset_kwargs": {"data_files": {"test": str(data)}}}
    (tmp_path / "local_speeches.yaml").write_text(yaml.safe_dump(task))
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args",
         f"pretrained={exported_folder(tiny_run.folder)},dtype=float32", "--tasks", "local_speeches",
         "--include_path", str(tmp_path), "--device", "cpu", "--batch_size", "1",
         "--output_path", str(tmp_path / "out")],
        capture_output=True, text=True, cwd=tmp_path,
        env=tiny.environment(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_DATASETS_CACHE=str(tmp_path / "cache")),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(found.read_text())["results"]["local_speeches"]
    # 300 tokens, hardly trained: between good text (1) and random bytes (8)
    assert 2 < results["bits_per_byte,none"] < 8
