"""Text from an export: greedy by hand, drawn by seed, never beyond the model's longest sequence."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmnas.errors import UserError
from llmnas.export import hf
from llmnas.export.card import Card
from llmnas.export.generate import generate, load_model
from llmnas.files import ABOUT_FILE, read_json, write_json
from llmnas.pipeline.exported import exported_folder
from llmnas.space import Architecture, BaseModel, LayerSpec
from llmnas.space.architecture import FixedShape
from llmnas.supernet import Transformer

PROMPT = "Fellow citizens"


@pytest.fixture(scope="module")
def folder(tiny_run):
    return exported_folder(tiny_run.folder)


def test_greedy_takes_the_likeliest_token_of_the_whole_text(folder):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    for _ in range(12):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    assert generate(folder, PROMPT, tokens=12, temperature=0, seed=1) == tokenizer.decode(ids[0, start:])


def test_low_bit_weights_are_packed_for_generation_and_compute_the_same(tokenizer_path, tmp_path, in_this_process):
    in_this_process(hf)
    spec = LayerSpec(2, 1, 32, 128, weights="ternary", mixer="mlgru")
    model = Transformer(FixedShape(BaseModel(vocab_size=300, max_seq=32), Architecture(64, (spec, spec))), seed=1)
    hf.export_hf(model, tmp_path / "out", tokenizer_path=tokenizer_path, card=Card("t", {}, "speeches", 0, 0))
    loaded = load_model(tmp_path / "out")
    tokens = torch.arange(12).view(1, 12)
    assert {v.dtype for v in loaded.model.layers.state_dict().values()} >= {torch.uint8}
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, model(tokens), rtol=1e-4, atol=1e-4)
    assert len(generate(tmp_path / "out", PROMPT, tokens=8, temperature=0, seed=0, model=loaded)) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.update({"model.norm.weight": torch.ones(3)}), r"model.norm.weight is \[3\], must be"),
        (lambda weights: weights.pop("model.norm.weight"), "model.norm.weight is missing"),
    ],
)
def test_weights_of_a_stock_class_that_do_not_fit_are_no_random_ones(folder, tmp_path, capfd, change, message):
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    weights = load_file(damaged / "model.safetensors")
    change(weights)
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"^{damaged}: {message}"):
        load_model(damaged)
    assert capfd.readouterr().err == ""
    (damaged / "model.safetensors").unlink()
    with pytest.raises(UserError, match=f"^{damaged}: .*model.safetensors"):
        load_model(damaged)
    (damaged / ABOUT_FILE).write_text("{}")
    with pytest.raises(UserError, match=f"^{damaged / ABOUT_FILE}: does not say which class"):
        load_model(damaged)


def test_drawn_by_seed_and_the_global_generator_is_left_alone(folder):
    first = generate(folder, PROMPT, tokens=20, temperature=1, seed=1)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert generate(folder, PROMPT, tokens=20, temperature=1, seed=1) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert generate(folder, PROMPT, tokens=20, temperature=1, seed=2) != first


def test_it_ends_at_the_longest_sequence(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    added = generate(folder, PROMPT, tokens=10_000, temperature=0, seed=0)
    assert len(tokenizer(PROMPT + added)["input_ids"]) <= 64 + 2  # text that is split anew may split otherwise


@pytest.mark.parametrize(("prompt", "word"), [("", "empty"), ("long " * 200, "at most 63")])
def test_prompts_that_do_not_fit(folder, prompt, word):
    with pytest.raises(UserError, match=word):
        generate(folder, prompt, tokens=5, temperature=0, seed=0)


def test_the_verb(tiny_run, llmnas):
    done = llmnas("generate", tiny_run.folder, "--prompt", PROMPT, "--tokens", "5", "--temperature", "0")
    assert done.code == 0, done.err
    assert done.out.startswith(PROMPT)
    assert len(done.out) > len(PROMPT) + 1


@pytest.mark.parametrize(
    ("file", "key", "value", "words"),
    [
        ("generation_config.json", "eos_token_id", "x", "is its generation_config.json damaged"),
        ("config.json", "hidden_act", "0x1F", "0x1F"),
    ],
)
def test_damaged_settings_are_one_line(folder, tmp_path, file, key, value, words):
    copied = shutil.copytree(folder, tmp_path / "copied")
    write_json(copied / file, read_json(copied / file) | {key: value})
    with pytest.raises(UserError, match=words) as error:
        generate(copied, "We", tokens=2, temperature=0, seed=0)
    assert str(error.value).startswith(f"{copied}: ")
    assert "\n" not in str(error.value)
