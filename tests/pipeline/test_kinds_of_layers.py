"""A whole run over ternary, binary and dense layers, MLGRU, attention and experts: every stage takes every kind."""

import json

import pytest
import tiny

from llmnas.archive import Archive
from llmnas.runs import RunFolder

SPACE = {
    **tiny.CONFIG["space"],
    "hidden_size": 64,
    "head_dim": 32,
    "ffn_size": {"choices": [64, 128], "per_layer": True},
    "weights": {"choices": ["ternary", "binary"], "per_layer": True},
    "mixer": {"choices": ["mlgru", "attention"], "per_layer": True},
    "experts": {"choices": [1, 4], "per_layer": True},
    "top_k": {"choices": [1, 2], "per_layer": True},
}


@pytest.mark.full
def test_a_whole_run_of_low_bit_layers_recurrences_and_experts(tmp_path):
    """The verb itself loads the export in a process of its own and compares its logits."""
    text = tiny.write_corpus(tmp_path / "text")
    config = tiny.write_config(tmp_path, text, space=SPACE, budget={"max_params": 400000})
    done = tiny.run("run", config, "--run-dir", tmp_path / "run")
    assert done.code == 0, done.err
    assert "exported as LlmnasForCausalLM, logits differ by 0.0e+00" in done.out
    run = RunFolder(tmp_path / "run")
    layers = [spec for e in Archive.load(run.evaluations).evaluations for _, spec in e.arch.kept]
    assert {(spec.weights, spec.mixer) for spec in layers} == {
        (weights, mixer) for weights in ("ternary", "binary") for mixer in ("mlgru", "attention")
    }
    assert {spec.experts for spec in layers} == {1, 4}
    retrained = json.loads((run.path / "retrain" / "result.json").read_text())
    assert [one["id"] for one in retrained["runs"]["found"]] == [retrained["found"]] * 2  # seeds
    again = tiny.run("run", config, "--run-dir", tmp_path / "run", "--resume")
    assert again.code == 0, again.err
    (export,) = (run.path / "export").iterdir()
    said = tiny.run("generate", export, "--prompt", "The people", "--tokens", "4")
    assert said.code == 0, said.err
    assert said.out.startswith("The people")
