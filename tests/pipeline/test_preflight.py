"""What would end a compression late is one line before anything is written; what real folders look like passes."""

import json
import shutil
from dataclasses import replace

import pytest
from real_models import write_glass
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from llmnas.data import read_model_tokenizer
from llmnas.errors import UserError
from llmnas.pipeline import preflight
from llmnas.pipeline.compress import space_values
from llmnas.space import SearchSpace

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.fixture(scope="module")
def glass(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glass")
    write_glass(folder)
    return folder


@pytest.fixture
def folder(glass, tmp_path):
    return shutil.copytree(glass, tmp_path / "model")


def byte_level(kind, entries=600):
    """A tokenizer as the hub has them for Qwen2 and GPT-2, of 600 entries: fewer than the model's 1,024 rows."""
    found = Tokenizer(models.BPE())
    if kind == "Qwen2Tokenizer":
        found.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(QWEN), "isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
        found.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    else:
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    found.post_processor = processors.ByteLevel(trim_offsets=False)
    found.decoder = decoders.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=entries, initial_alphabet=alphabet, show_progress=False)
    found.train_from_iterator(["the people of the United States " * 50, "state of the union, 1234 " * 50], trainer)
    return found


def give(folder, tokenizer, eos, **settings):
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": eos}))


def check(folder):
    space = SearchSpace.from_dict(space_values(folder, per_layer=False))
    preflight.preflight(folder, space, read_model_tokenizer(folder, space.base.vocab_size))


@pytest.mark.parametrize("kind", ["Qwen2Tokenizer", pytest.param("GPT2Tokenizer", marks=pytest.mark.full)])
def test_tokenizers_as_the_hub_has_them(folder, kind):
    """Rows beyond the entries, several ends of which one is not marked special, offsets that are not trimmed."""
    tokenizer = byte_level(kind)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>")])
    tokenizer.add_tokens([AddedToken("<|im_end|>", special=False)])
    end = tokenizer.token_to_id("<|endoftext|>")
    give(folder, tokenizer, [end + 2, end], tokenizer_class=kind, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    check(folder)


def test_a_tokenizer_that_transformers_splits_by_other_rules(folder):
    """The class that the settings name has rules of its own, whatever the file says."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    give(folder, tokenizer, 3, tokenizer_class="Qwen2Tokenizer", eos_token="<eos>")
    with pytest.raises(UserError, match="is not what the model was trained with: AutoTokenizer loads a ") as error:
        preflight.require_export(
            folder, SearchSpace.from_dict(space_values(folder, per_layer=False)), read_model_tokenizer(folder, 1024)
        )
    assert "\n" not in str(error.value)


def test_more_entries_than_rows(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["<added>"])
    give(folder, tokenizer, 3)
    with pytest.raises(UserError, match=r"has 1,025 entries, .* 1,024 rows.*resize_token_embeddings\(1025\)"):
        read_model_tokenizer(folder, 1024)


def test_other_logits_than_those_of_transformers(folder, monkeypatch):
    preflight.require_equal_logits(folder)
    read = preflight.read_pretrained
    wrong = replace(read(folder), base=replace(read(folder).base, rope_theta=9000.0))
    monkeypatch.setattr(preflight, "read_pretrained", lambda _: wrong)
    with pytest.raises(UserError, match=r"logits computed here are off by \d\.\de-\d\d of the largest"):
        preflight.require_equal_logits(folder)


@pytest.mark.parametrize(
    ("settings", "added"),
    [({}, True), ({"add_bos_token": False}, False), ({"add_bos_token": True}, True)],
)
def test_documents_begin_as_the_tokenizer_begins_them(folder, settings, added):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if settings.get("add_bos_token") is not True:  # by the file's own template, or asked for by the settings alone
        tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 2)])
    give(folder, tokenizer, 3, tokenizer_class="PreTrainedTokenizerFast", bos_token="<bos>", **settings)
    found = read_model_tokenizer(folder, 1024)
    assert found.prefix == ((2,) if added else ())
    if "add_bos_token" not in settings:
        whole = AutoTokenizer.from_pretrained(folder)("a state")["input_ids"]
        assert whole == [*found.prefix, *found.tokenizer.encode("a state", add_special_tokens=False).ids]
