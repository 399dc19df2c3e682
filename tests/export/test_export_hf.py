import copy
import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from strategies import random_tokens, scrambled
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmnas.cost import count_params
from llmnas.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from llmnas.errors import RunError, UserError
from llmnas.export import Card, export_hf, hf
from llmnas.export.hf import write_checkpoint, write_expected
from llmnas.export.verify import TOLERANCE, check_model, check_tokenizer
from llmnas.export.verify import main as verify
from llmnas.files import read_json, write_json
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec

VOCAB = 300
BASE = BaseModel(VOCAB, rope_dim=8, max_seq=64)
MIXED = Architecture(14, (LayerSpec(1, 4, 4, 8), LayerSpec(3, 1, 8, 5)))
UNIFORM = Architecture(12, (LayerSpec(2, 3, 4, 8),) * 2)
CARD = Card(
    name="tiny",
    metrics={"val_loss": 3.25, "perplexity": 25.79034},
    data="249 speeches",
    seed=7,
    trained_tokens=1_234_567,
    notes=("Found by random search.",),
)
TEXT = "Fellow citizens: don't forget  1,024 <|endoftext|> cafe\u0301s\n\n\tof the Union."


@pytest.fixture(scope="module")
def model():
    return scrambled(FixedShape(BASE, MIXED))


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tokenizer_path, model):
    """One full export, verified in a fresh process: (folder, report)."""
    folder = tmp_path_factory.mktemp("export") / "deep" / "tiny"
    return folder, export_hf(model, folder, tokenizer_path=tokenizer_path, card=CARD)


@pytest.fixture
def copy_of(exported, tmp_path):
    return shutil.copytree(exported[0], tmp_path / "copy")


@pytest.fixture
def expected(model, tmp_path):
    write_expected(model, tmp_path / "expected.safetensors")
    return tmp_path / "expected.safetensors"


def test_report_says_what_was_written(exported):
    folder, report = exported
    assert (report.folder, report.class_name, report.tier) == (folder, "MistralForCausalLM", 2)
    assert report.own_parameters == count_params(MIXED, BASE).total
    assert report.parameters == sum(w.numel() for w in load_file(folder / "model.safetensors").values())
    assert report.parameters > report.own_parameters
    assert report.difference <= 1e-5
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # whoever reads the config reads the weights


def test_folder_says_what_the_model_is(exported):
    folder, report = exported
    about = read_json(folder / "llmnas.json")
    assert Architecture.from_dict(about["architecture"]) == MIXED
    assert BaseModel(**about["base"]) == BASE
    config = read_json(folder / "config.json")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert (config["vocab_size"], config["sliding_window"]) == (VOCAB, None)
    card = (folder / "README.md").read_text()
    for word in (
        "# tiny",
        "MistralForCausalLM",
        f"`{MIXED.id}`",
        "| 0 | 1 | 4 | 4 | 8 |",
        "| perplexity | 25.7903 |",
        "249 speeches",
        "1,234,567",
        "Seed: 7",
        "Tier 2",
        f"{report.parameters:,} parameters for {report.own_parameters:,}",
        "Found by random search.",
    ):
        assert word in card


def test_generates_what_our_model_generates(exported, model):
    stock = AutoModelForCausalLM.from_pretrained(exported[0])
    tokens = random_tokens(BASE, batch=1, seq=8)
    # with the KV cache of transformers, token by token; the end of text must not stop the comparison
    found = stock.generate(tokens, max_new_tokens=24, do_sample=False, eos_token_id=-1)
    for _ in range(24):
        with torch.no_grad():
            tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found, tokens)
    settings = stock.generation_config
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (0, 0, 0)


def test_tokenizer_reads_text_as_in_training(exported, tokenizer_path):
    loaded = AutoTokenizer.from_pretrained(exported[0])
    ids = load_tokenizer(tokenizer_path).encode(TEXT).ids
    assert 0 not in ids
    assert loaded(TEXT, split_special_tokens=True)["input_ids"] == ids
    assert loaded.decode(ids) == TEXT
    assert loaded(TEXT)["input_ids"].count(0) == 1
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id, len(loaded)) == (0, 0, 0, VOCAB)
    assert loaded.model_max_length == BASE.max_seq


@pytest.mark.parametrize(
    ("class_name", "options", "arch"),
    [
        ("LlamaForCausalLM", {"tied": False}, UNIFORM),
        ("LlamaForCausalLM", {"qkv_bias": True}, UNIFORM),
        ("SeedOssForCausalLM", {"qkv_bias": True}, MIXED),
        ("Qwen3ForCausalLM", {"qk_norm": True, "qkv_bias": True, "rope_order": "spread"}, MIXED),
    ],
)
def test_every_class_loads_from_its_folder(class_name, options, arch, tokenizer_path, tmp_path):
    model = scrambled(FixedShape(dataclasses.replace(BASE, **options), arch))
    stored = write_checkpoint(model, tmp_path, tokenizer_path, CARD)
    tokens = random_tokens(model.base, batch=2, seq=64)
    with torch.no_grad():
        logits = model(tokens)
    assert stored.class_name == class_name
    assert check_model(tmp_path, tokens, logits) <= 1e-5
    check_tokenizer(tmp_path)
    note = "here zero" if class_name == "LlamaForCausalLM" and "qkv_bias" in options else "Tier"
    assert note in (tmp_path / "README.md").read_text()


def test_no_tokenizer_and_no_metrics_are_said_or_left_out(tmp_path):
    write_checkpoint(scrambled(FixedShape(BASE, UNIFORM)), tmp_path, None, dataclasses.replace(CARD, metrics={}))
    assert not (tmp_path / "tokenizer.json").exists()
    assert read_json(tmp_path / "config.json")["eos_token_id"] is None
    card = (tmp_path / "README.md").read_text()
    assert "No tokenizer" in card
    assert "Metrics" not in card


def test_verify_accepts_the_export(copy_of, expected, capsys):
    assert verify(copy_of, expected) == 0
    assert float(capsys.readouterr().out.split()[-1]) <= TOLERANCE


def test_verify_sees_one_flipped_weight(copy_of, expected, capsys):
    weights = load_file(copy_of / "model.safetensors")
    weights["model.layers.1.self_attn.k_proj.weight"][0, 0] *= -1
    save_file(weights, copy_of / "model.safetensors", metadata={"format": "pt"})
    assert verify(copy_of, expected) == 1
    assert "logits differ by" in capsys.readouterr().err.splitlines()[-1]


def test_verify_sees_a_missing_weight_that_transformers_would_initialise(copy_of, expected, capsys):
    weights = load_file(copy_of / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, copy_of / "model.safetensors", metadata={"format": "pt"})
    assert verify(copy_of, expected) == 1
    assert "model.norm.weight" in capsys.readouterr().err.splitlines()[-1]


def test_verify_sees_another_class(copy_of, expected, capsys):
    about = read_json(copy_of / "llmnas.json")
    about["export"]["class"] = "LlamaForCausalLM"
    write_json(copy_of / "llmnas.json", about)
    assert verify(copy_of, expected) == 1
    assert "are not LlamaForCausalLM" in capsys.readouterr().err.splitlines()[-1]


def test_a_bad_model_leaves_the_old_export_as_it_was(copy_of, model):
    broken = scrambled(FixedShape(BASE, MIXED))
    with torch.no_grad():
        broken.norm[0] = torch.nan
    before = {path.name: path.read_bytes() for path in copy_of.iterdir()}
    with pytest.raises(RunError, match="does not verify: logits differ by nan"):
        export_hf(broken, copy_of, tokenizer_path=None, card=CARD, force=True)
    assert {path.name: path.read_bytes() for path in copy_of.iterdir()} == before
    assert sum(path.is_dir() for path in copy_of.parent.iterdir()) == 1


def test_force_replaces_an_export(copy_of, model, in_this_process):
    in_this_process(hf)
    (copy_of / "stale.txt").write_text("of the old export")
    half = copy.deepcopy(model).bfloat16()
    report = export_hf(half, copy_of, tokenizer_path=None, card=CARD, force=True)
    assert report.difference <= 1e-5
    assert {weight.dtype for weight in load_file(copy_of / "model.safetensors").values()} == {torch.float32}
    assert half.norm.dtype == torch.bfloat16
    assert not (copy_of / "stale.txt").exists()
    assert sum(path.is_dir() for path in copy_of.parent.iterdir()) == 1


def test_an_existing_folder_is_refused(exported, model, tmp_path):
    with pytest.raises(UserError, match="is there already; replace an earlier export with --force, or move it away"):
        export_hf(model, exported[0], tokenizer_path=None, card=CARD)
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="replaces only an earlier export"):
        export_hf(model, tmp_path, tokenizer_path=None, card=CARD, force=True)
    assert (tmp_path / "thesis.txt").exists()


def test_a_tokenizer_that_does_not_fit_is_refused(model, tokenizer_path, tmp_path):
    def attempt(path):
        export_hf(model, tmp_path / "out", tokenizer_path=path, card=CARD)

    with pytest.raises(UserError, match="no such file"):
        attempt(tmp_path / "missing.json")
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="not a tokenizer"):
        attempt(tmp_path / "other.json")
    save_tokenizer(train_tokenizer(["abc"], 258), tmp_path / "small.json")
    with pytest.raises(UserError, match="258 entries, the model's vocabulary 300"):
        attempt(tmp_path / "small.json")
    plain = json.loads(tokenizer_path.read_text()) | {"added_tokens": []}
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    with pytest.raises(UserError, match="entry 0 must be a special token"):
        attempt(tmp_path / "plain.json")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_said(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write the export"):
        export_hf(model, tmp_path / "file" / "out", tokenizer_path=None, card=CARD)


QUESTIONS = [
    {"question": "The state of the union is", "choices": ["strong", "citizens", "of"], "answer": 0},
    {"question": "Fellow citizens of the", "choices": ["house", "senate and union"], "answer": 1},
]
TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files: {{test: {path}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs the extra llmnas[eval]")
def test_runs_under_lm_eval(exported, model, tokenizer_path, tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    (tmp_path / "tiny_choice.yaml").write_text(TASK.format(path=questions))
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={exported[0]}"]
    command += ["--include_path", str(tmp_path), "--tasks", "tiny_choice", "--device", "cpu", "--limit", "4"]
    command += ["--log_samples", "--output_path", str(tmp_path / "results")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, env=tiny.environment(**offline), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (samples,) = (tmp_path / "results").rglob("samples_*.jsonl")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    tokenizer = load_tokenizer(tokenizer_path)
    for row, question in zip(rows, QUESTIONS, strict=True):
        found = [float(likelihood) for likelihood, _ in row["filtered_resps"]]
        wanted = [log_likelihood(model, tokenizer, question["question"], choice) for choice in question["choices"]]
        assert found == pytest.approx(wanted, rel=1e-4)


def log_likelihood(model, tokenizer: Tokenizer, context, choice):
    prefix, ids = tokenizer.encode(context).ids, tokenizer.encode(f"{context} {choice}").ids
    with torch.no_grad():
        log_probs = model(torch.tensor([ids]))[0].log_softmax(-1)
    return sum(float(log_probs[i - 1, ids[i]]) for i in range(len(prefix), len(ids)))
