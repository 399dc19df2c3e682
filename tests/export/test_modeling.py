"""The own modeling file: any architecture, in a process that cannot import llmnas."""

import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given, settings
from safetensors.torch import load_file, save_file
from strategies import random_tokens, scrambled, spaces_with_members

from llmnas.errors import RunError, UserError
from llmnas.export import Card, export_hf, hf
from llmnas.export.configuration_llmnas import LlmnasConfig
from llmnas.export.generate import generate, load_model
from llmnas.export.hf import write_checkpoint
from llmnas.export.modeling_llmnas import LlmnasForCausalLM
from llmnas.export.own import own_config, own_weights
from llmnas.export.verify import check_model
from llmnas.files import ABOUT_FILE
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec
from llmnas.supernet import Transformer, extract

BASE = BaseModel(vocab_size=40, rope_dim=8, max_seq=64, router="sigmoid", qk_norm=True)
# every kind of layer, every size by layer
ZOO = Architecture(
    16,
    (
        LayerSpec(1, 2, 8, 12, weights="ternary"),
        LayerSpec(2, 1, 4, 8, mixer="mlgru"),
        LayerSpec(1, 1, 8, 16, experts=4, top_k=2),
        LayerSpec(1, 1, 2, 24, mixer="none"),
        LayerSpec(1, 3, 4, 12, weights="binary", mixer="mlgru"),
    ),
)
ATTENTION = Architecture(16, (LayerSpec(1, 2, 8, 12, weights="ternary"), LayerSpec(2, 1, 4, 8)))
# weights that are packed, some whose inputs cut a group, and dense ones
CODED = Architecture(
    64,
    (
        LayerSpec(1, 8, 8, 64, weights="ternary"),
        LayerSpec(1, 1, 8, 20, mixer="mlgru"),
        LayerSpec(1, 3, 4, 32, weights="binary", mixer="mlgru"),
        LayerSpec(1, 1, 2, 40, weights="ternary", mixer="none", experts=2),
    ),
)
CARD = Card(name="zoo", metrics={}, data="speeches", seed=1, trained_tokens=0)
STRANGER = """
import sys
sys.modules |= {"llmnas": None, "numba": None}
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
folder, given, out, again = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokens = load_file(given)["tokens"]
with torch.no_grad():
    logits = model(tokens).logits
text = model.generate(tokens, max_new_tokens=12, do_sample=False, eos_token_id=-1)
beams = model.generate(tokens[:, :5], max_new_tokens=6, num_beams=3, do_sample=False, eos_token_id=-1)
save_file({"logits": logits.contiguous(), "text": text, "beams": beams.contiguous()}, out)
model.save_pretrained(again)
"""


def shell(model):
    """The shell on the weights as they are stored, without the disk."""
    stored = LlmnasForCausalLM(own_config(model, None)).eval()
    stored.load_state_dict(own_weights(model), strict=True)
    return stored


def greedy(model, tokens, steps):
    """By our own forward on the whole text, without a cache."""
    for _ in range(steps):
        with torch.no_grad():
            tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], dim=1)
    return tokens


@pytest.fixture(scope="module")
def zoo():
    return scrambled(FixedShape(BASE, ZOO)).eval()


def test_a_process_without_llmnas_gives_the_same_logits_and_text_and_saves_the_same_codes(tmp_path):
    """Nor with numba, which an exported folder can do without."""
    model = scrambled(FixedShape(BASE, CODED)).eval()
    stored = write_checkpoint(model, _made(tmp_path / "coded"), None, CARD)
    tokens = random_tokens(BASE, 2, 9)
    save_file({"tokens": tokens}, tmp_path / "tokens.safetensors")
    paths = [tmp_path / name for name in ("coded", "tokens.safetensors", "found", "again")]
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *paths],
        capture_output=True, text=True, env=tiny.environment(HF_MODULES_CACHE=str(tmp_path / "modules")),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "LOAD REPORT" not in done.stderr
    found = load_file(tmp_path / "found")
    with torch.no_grad():
        assert torch.equal(found["logits"], model(tokens))
    assert torch.equal(found["text"], greedy(model, tokens, 12))
    assert torch.equal(found["beams"], shell(model).generate(
        tokens[:, :5], max_new_tokens=6, num_beams=3, do_sample=False, eos_token_id=-1
    ))  # fmt: skip
    loaded = LlmnasForCausalLM.from_pretrained(tmp_path / "again")
    loaded.save_pretrained(tmp_path / "third")
    first, *later = (load_file(tmp_path / name / "model.safetensors") for name in ("coded", "again", "third"))
    for weights in later:
        assert weights.keys() == first.keys()
        assert all(weights[name].dtype == first[name].dtype for name in first)
        assert all(torch.equal(weights[name], first[name]) for name in first)
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens))
    assert (stored.class_name, stored.tier) == ("LlmnasForCausalLM", 3)
    assert stored.parameters == stored.own_parameters == sum(weight.numel() for weight in model.parameters())
    # query, key, value, output, gate, up, down; three of 12 rows, gate, up, down; gate and up of two experts
    assert stored.packed == 64 * (64 + 2 * 8 + 64 + 3 * 64) + 64 * (3 * 12 + 3 * 32) + 64 * (2 * 2 * 40)
    assert stored.size == sum(weight.nbytes for weight in first.values())
    card = (tmp_path / "coded" / "README.md").read_text()
    assert "trust_remote_code=True" in card
    assert "| 3 | 1 | 1 | 2 | 40 | ternary | none | 1 of 2 |" in card
    assert f"All weights take {stored.size:,} bytes. {stored.packed:,} of {stored.parameters:,} parameters" in card


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """The folder of a packed network, and the network."""
    model = scrambled(FixedShape(BASE, CODED)).eval()
    folder = tmp_path_factory.mktemp("coded")
    write_checkpoint(model, folder, None, CARD)
    return folder, model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_no_dtype_touches_codes_or_their_scales(coded, dtype):
    folder, model = coded
    stored, tokens = load_file(folder / "model.safetensors"), random_tokens(BASE, 2, 9)
    loaded = LlmnasForCausalLM.from_pretrained(folder, dtype=dtype)
    state = loaded.state_dict()
    for name, value in stored.items():
        if not value.is_floating_point():
            assert torch.equal(state[name], value)
            scale = next(key for key in state if key.startswith(name.removesuffix("weight")) and key.endswith("_scale"))
            assert state[scale].dtype == torch.float32
            assert torch.equal(state[scale], stored[scale])
    with torch.no_grad():
        logits = loaded(tokens).logits
        plain = shell(model).to(dtype)(tokens).logits
        wanted = model(tokens)
    assert loaded.dtype == logits.dtype == dtype
    near = (logits - wanted).abs().mean()
    assert near < 1e-5 if dtype == torch.float64 else near < 2 * (plain - wanted).abs().mean()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, "float8_e5m2", torch.int8])
def test_a_dtype_that_nothing_computes_in_is_refused(coded, dtype):
    with pytest.raises(ValueError, match=r"dtype: torch\.\w+, must be one of torch.float32, torch.bfloat16"):
        LlmnasForCausalLM.from_pretrained(coded[0], dtype=dtype)


def test_unpacked_it_learns_and_is_stored_in_floats(coded, tmp_path):
    folder, model = coded
    packed, tokens = LlmnasForCausalLM.from_pretrained(folder), random_tokens(BASE, 2, 9)
    assert not any(weight.requires_grad for weight in packed.parameters())
    plain = packed.unpacked()
    plain(tokens, labels=tokens).loss.backward()
    assert plain.model.layers[0].attention.q.weight.grad.abs().sum() > 0
    plain.save_pretrained(tmp_path / "floats")
    floats = load_file(tmp_path / "floats" / "model.safetensors")
    assert {value.dtype for value in floats.values()} == {torch.float32}
    read = LlmnasForCausalLM.from_pretrained(tmp_path / "floats")
    assert packed.config.packed
    assert not read.config.packed
    shutil.copy(folder / ABOUT_FILE, tmp_path / "floats")
    again = load_model(tmp_path / "floats")  # as `llmnas generate` does, which packs
    codes = {name: value for name, value in packed.state_dict().items() if not value.is_floating_point()}
    assert all(torch.equal(again.state_dict()[name], value) for name, value in codes.items())
    with torch.no_grad():
        for one in (packed, read, read.unpacked(), again, load_model(folder)):
            assert torch.equal(one(tokens).logits, model(tokens))


QUERY, SCALE = "model.layers.0.attention.q.weight", "model.layers.0.attention.q.ternary_scale"


def wrong_code(weights):
    weights[QUERY][2, 1] = 0b1100


def nan_scale(weights):
    weights[SCALE].fill_(torch.nan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong_code, "model.layers.0.attention.q.weight: packed: row 2, byte 1 holds code 3, must be 0, 1 or 2"),
        (nan_scale, "model.layers.0.attention.q.ternary_scale: holds nan, must hold positive numbers"),
        (lambda weights: weights.pop(SCALE), f"{SCALE} is missing"),
        (lambda weights: weights.update({QUERY: torch.zeros(64, 64)}), rf"{QUERY} is \[64, 64\], must be \[64, 16\]"),
    ],
)
def test_damaged_codes_and_scales_end_in_one_line(coded, tmp_path, change, message):
    folder = shutil.copytree(coded[0], tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"^{message}"):
        LlmnasForCausalLM.from_pretrained(folder)
    with pytest.raises(UserError, match=f"^{folder}: {message}") as error:
        load_model(folder)
    assert "\n" not in str(error.value)


def test_a_damaged_export_does_not_verify(coded, tmp_path):
    folder = shutil.copytree(coded[0], tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    wrong_code(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        RunError, match=r"^does not load: .*: model.layers.0.attention.q.weight: packed: row 2, byte 1 holds code 3"
    ):
        check_model(folder, *(torch.zeros(1, 1),) * 2)


def test_another_format_of_packed_weights_is_refused():
    with pytest.raises(ValueError, match="packed is 'llmnas packed 9', must be 'llmnas packed 2' or absent"):
        LlmnasConfig(packed="llmnas packed 9")


def _made(folder):
    folder.mkdir()
    return folder


@settings(max_examples=12)
@given(spaces_with_members(kinds=True))
def test_any_member_of_any_space_is_stored_exactly(case):
    space, arch = case
    model = extract(scrambled(space), arch).eval()
    tokens = random_tokens(space.base, 2, 7)
    with torch.no_grad():
        torch.testing.assert_close(shell(model)(tokens).logits, model(tokens), rtol=0, atol=0)


def test_low_bit_weights_are_stored_as_codes_and_stay_so(zoo):
    weights = own_weights(zoo)
    q, scale = weights["model.layers.0.attention.q.weight"], weights["model.layers.0.attention.q.ternary_scale"]
    assert len(q.unique()) == 3
    assert not any(tensor.isnan().any() for tensor in weights.values())
    again = own_weights(shell(zoo).model)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    # after a cast every weight is still a code times the cast scale
    half = own_weights(Transformer(FixedShape(BASE, ZOO)).bfloat16())
    assert torch.equal(half["model.layers.0.attention.q.weight"].unique().abs().max(), half[
        "model.layers.0.attention.q.ternary_scale"].max())  # fmt: skip
    assert torch.equal((q / scale).bfloat16() * scale.bfloat16(), q.bfloat16())


def test_left_padding_changes_nothing_for_the_text(zoo):
    model, tokens = shell(zoo), random_tokens(BASE, 1, 6)
    padded = torch.cat([torch.full((1, 3), 7), tokens], dim=1)
    longer = random_tokens(BASE, 1, 9, seed=1)
    ids, mask = torch.cat([longer, padded]), torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = 0
    settings_ = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": -1, "pad_token_id": 7}
    found = model.generate(ids, attention_mask=mask, **settings_)
    assert torch.equal(found[0], greedy(zoo, longer, 10)[0])
    assert torch.equal(found[1, 3:], greedy(zoo, tokens, 10)[0])


def test_right_padding_is_right_for_a_whole_text_and_refused_for_going_on(zoo):
    model, tokens = shell(zoo), random_tokens(BASE, 2, 8)
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[1, 5:] = 0
    with torch.no_grad():
        found = model(tokens, attention_mask=mask).logits
        torch.testing.assert_close(found[1, :5], zoo(tokens[1:, :5])[0], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="pad on the left"):
        model.generate(tokens, attention_mask=mask, max_new_tokens=2, pad_token_id=0)


def test_a_mask_that_does_not_fit_is_refused(zoo):
    model, tokens = shell(zoo), random_tokens(BASE, 1, 4)
    mask = torch.tensor([[0, 1, 1, 1]])
    with torch.no_grad():
        cache = model(tokens, attention_mask=mask, use_cache=True).cache
        with pytest.raises(ValueError, match=r"\[1, 1\], must be \[batch, 5\]"):
            model(tokens[:, :1], attention_mask=mask[:, :1], cache=cache)
        with pytest.raises(ValueError, match="the mask must be given on"):
            model(tokens[:, :1], cache=cache)


def test_loss_and_kept_logits_are_those_of_transformers(zoo):
    model, tokens = shell(zoo), random_tokens(BASE, 2, 8)
    with torch.no_grad():
        output = model(tokens, labels=tokens, logits_to_keep=0)
        assert torch.equal(model(tokens, logits_to_keep=2).logits, output.logits[:, -2:])
    wanted = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(output.loss, wanted)
    assert len(model(tokens, labels=tokens, return_dict=False)) == 2


def test_cache_forgets_where_attention_alone_mixes(zoo):
    model, tokens = shell(scrambled(FixedShape(BASE, ATTENTION)).eval()), random_tokens(BASE, 2, 10)
    assert not model._is_stateful
    with torch.no_grad():
        cache = model(tokens[:, :7], use_cache=True).cache
        cache.crop(-3)
        assert cache.get_seq_length() == 4
        found = model(tokens[:, 4:], cache=cache).logits
        torch.testing.assert_close(found, model(tokens).logits[:, 4:], rtol=1e-4, atol=1e-4)
        recurrent = shell(zoo)
        assert recurrent._is_stateful
        with pytest.raises(ValueError, match="cannot forget"):
            recurrent(tokens, use_cache=True).cache.crop(-1)


def test_cache_grows_beyond_what_was_reserved(zoo):
    model, tokens = shell(zoo), random_tokens(BASE, 1, 3)
    found = model.generate(tokens, max_new_tokens=50, do_sample=False, eos_token_id=-1)
    assert torch.equal(found, greedy(zoo, tokens, 50))


def test_export_is_verified_and_generates(tokenizer_path, tmp_path, in_this_process):
    """Own tier chosen, verified by the code in the folder; and `llmnas generate` runs no code from the folder."""
    in_this_process(hf)
    model = scrambled(FixedShape(replace(BASE, vocab_size=300), ZOO)).eval()
    report = export_hf(model, tmp_path / "out", tokenizer_path=tokenizer_path, card=CARD)
    assert (report.class_name, report.tier, report.difference) == ("LlmnasForCausalLM", 3, 0)
    assert report.parameters == report.own_parameters
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "out" / "modeling_llmnas.py").write_text("raise SystemExit('run')")
    assert generate(tmp_path / "out", "the state of", tokens=4, temperature=0, seed=0)
