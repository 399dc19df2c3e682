"""The tokenizer of an export lets people tune chat, and every transformers reads it as the file says."""

import json

import pytest
from gguf import GGUFReader
from strategies import scrambled
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

from llmnas.data.tokenizer import save_tokenizer, train_tokenizer
from llmnas.errors import RunError
from llmnas.export import Card
from llmnas.export.gguf import write_gguf
from llmnas.export.hf import write_checkpoint
from llmnas.export.tokenizer import pad_id
from llmnas.export.verify import check_tokenizer
from llmnas.files import read_json, write_json
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec

SHAPE = FixedShape(BaseModel(310, rope_dim=8, max_seq=32), Architecture(16, (LayerSpec(2, 1, 8, 8),) * 2))
CARD = Card(name="chat", metrics={}, data="speeches", seed=1, trained_tokens=0)
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


def pretrained(folder, tokenizer_path, special, **settings):
    """A tokenizer with special tokens added, as a model's folder holds it; its path."""
    folder.mkdir()
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder / "tokenizer.json"


def written(folder, source, eos_id=0, **options):
    folder.mkdir()
    write_checkpoint(scrambled(SHAPE).eval(), folder, source, CARD, eos_id, **options)
    return folder


@pytest.fixture(scope="module")
def own(tokenizer_path, tmp_path_factory):
    shape = FixedShape(BaseModel(300, rope_dim=8, max_seq=32), SHAPE.envelope)
    folder = tmp_path_factory.mktemp("own")
    write_checkpoint(scrambled(shape).eval(), folder, tokenizer_path, CARD)
    return folder


def test_special_tokens_that_are_added_later_are_tokens(own):
    tokenizer = AutoTokenizer.from_pretrained(own)
    assert tokenizer.model_input_names == ["input_ids", "attention_mask"]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    assert tokenizer("<|user|>the state")["input_ids"][0] == 300
    assert tokenizer("a<|endoftext|>")["input_ids"][-1] == 0
    assert tokenizer("a<|endoftext|>", split_special_tokens=True)["input_ids"][-1] != 0
    assert "split_special_tokens" not in read_json(own / "tokenizer_config.json")


def test_asked_for_no_text_forges_an_end(tokenizer_path, tmp_path):
    shape = FixedShape(BaseModel(300, rope_dim=8, max_seq=32), SHAPE.envelope)
    (tmp_path / "split").mkdir()
    write_checkpoint(scrambled(shape).eval(), tmp_path / "split", tokenizer_path, CARD, split_special=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "split")
    assert 0 not in tokenizer("a<|endoftext|>b")["input_ids"]
    check_tokenizer(tmp_path / "split")
    assert "(`split_special_tokens`)" in (tmp_path / "split" / "README.md").read_text()


@pytest.mark.parametrize(
    ("special", "settings", "wanted"),
    [
        ((), {}, "<|endoftext|>"),
        (("<|pad|>",), {}, "<|pad|>"),
        (("<|im_end|>", "<|fill|>"), {"pad_token": "<|fill|>"}, "<|fill|>"),
        (("<|im_end|>",), {"pad_token": "<|endoftext|>", "unk_token": {"content": "<|im_end|>"}}, "<|im_end|>"),
        (("<|finetune_right_pad_id|>",), {"pad_token": "<|endoftext|>"}, "<|finetune_right_pad_id|>"),
        ((), {"pad_token": "not there"}, "<|endoftext|>"),
    ],
)
def test_padding_is_no_end_of_text_where_there_is_another(tokenizer_path, tmp_path, special, settings, wanted):
    source = pretrained(tmp_path / "model", tokenizer_path, special, eos_token="<|endoftext|>", **settings)
    folder = written(tmp_path / "export", source)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.pad_token, tokenizer.eos_token) == (wanted, "<|endoftext|>")
    assert read_json(folder / "generation_config.json")["pad_token_id"] == tokenizer.pad_token_id == pad_id(source, 0)


@pytest.mark.parametrize("name", ["Qwen2Tokenizer", "GPT2TokenizerFast", "LlamaTokenizer", "NobodysTokenizer"])
def test_whatever_class_a_tokenizer_came_with_the_file_is_read_as_it_is(tokenizer_path, tmp_path, name):
    source = pretrained(
        tmp_path / "model", tokenizer_path, ("<|im_start|>", "<|im_end|>"), tokenizer_class=name,
        eos_token="<|im_end|>", chat_template=TEMPLATE, add_prefix_space=False,
    )  # fmt: skip
    folder = written(tmp_path / "export", source, eos_id=301)
    check_tokenizer(folder)
    chat = AutoTokenizer.from_pretrained(folder)
    ids = chat.apply_chat_template([{"role": "user", "content": "the union"}], return_dict=False)
    assert (ids[0], ids[-1], chat.eos_token_id) == (300, 301, 301)


def test_a_tokenizer_that_transformers_rebuilds_with_other_ids_does_not_verify(tmp_path):
    """Qwen's class splits numbers into digits, whatever the file says."""
    save_tokenizer(train_tokenizer(["in 1024 of 1024 days " * 9], 268), tmp_path / "tokenizer.json")
    shape = FixedShape(BaseModel(268, rope_dim=8, max_seq=32), SHAPE.envelope)
    (tmp_path / "out").mkdir()
    write_checkpoint(scrambled(shape).eval(), tmp_path / "out", tmp_path / "tokenizer.json", CARD)
    check_tokenizer(tmp_path / "out")
    settings = read_json(tmp_path / "out" / "tokenizer_config.json")
    write_json(tmp_path / "out" / "tokenizer_config.json", settings | {"tokenizer_class": "Qwen2Tokenizer"})
    with pytest.raises(RunError, match=r"AutoTokenizer loads a Qwen2Tokenizer that splits .* otherwise: token"):
        check_tokenizer(tmp_path / "out")


def test_gguf_carries_the_chat_template_and_the_end_of_text(tokenizer_path, tmp_path):
    source = pretrained(
        tmp_path / "model", tokenizer_path, [f"<|{i}|>" for i in range(9)] + ["<|pad|>"], chat_template=TEMPLATE
    )
    write_gguf(scrambled(SHAPE).float(), tmp_path / "m.gguf", tokenizer_path=source, name="chat", eos_id=303)
    fields = GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == TEMPLATE
    ids = {name: fields[f"tokenizer.ggml.{name}_token_id"].contents() for name in ("eos", "padding")}
    assert ids == {"eos": 303, "padding": 309}


def test_the_card_of_a_bitnet_says_that_it_needs_a_compiler(tmp_path):
    ternary = LayerSpec(2, 2, 8, 24, weights="ternary")
    model = scrambled(FixedShape(BaseModel(40, rope_dim=8, max_seq=32), Architecture(32, (ternary,) * 2))).eval()
    (tmp_path / "bitnet").mkdir()
    write_checkpoint(model, tmp_path / "bitnet", None, CARD)
    card = (tmp_path / "bitnet" / "README.md").read_text()
    assert "needs a C++ compiler" in card
    assert "TORCHDYNAMO_DISABLE=1" in card
