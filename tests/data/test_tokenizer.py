"""Byte-level BPE: exact sizes, exact round trips, no forged end of text, damage found."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmnas.data import (
    END_OF_TEXT,
    EOS_ID,
    TokenFile,
    check_vocab,
    encode_texts,
    load_tokenizer,
    read_corpus,
    save_tokenizer,
    split_documents,
    train_tokenizer,
    write_tokens,
)
from llmnas.errors import UserError

VOCAB = 512


@pytest.fixture(scope="module")
def texts():
    return [document.text for document in read_corpus("sotu")[:6]]


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer(texts, VOCAB)


def test_vocabulary_is_exact_and_starts_with_the_end_of_text(tokenizer):
    assert sorted(tokenizer.get_vocab().values()) == list(range(VOCAB))
    assert tokenizer.token_to_id(END_OF_TEXT) == EOS_ID == 0
    check_vocab(tokenizer, VOCAB)
    for size in (VOCAB - 1, VOCAB + 1):
        with pytest.raises(UserError, match=f"vocab_size is {size}; set it to {VOCAB}"):
            check_vocab(tokenizer, size)


def test_training_is_deterministic(texts, tokenizer):
    assert train_tokenizer(iter(texts), VOCAB).to_str() == tokenizer.to_str()


def test_impossible_vocabularies_are_refused(texts):
    with pytest.raises(UserError, match="at least 257"):
        train_tokenizer(texts, 256)
    with pytest.raises(UserError, match="too small for that, it yields 259 entries; ask for at most 259"):
        train_tokenizer(["hi hi hi"], 300)
    assert train_tokenizer(["hi hi hi"], 259).get_vocab_size() == 259
    assert train_tokenizer([], 257).get_vocab_size() == 257


@given(st.lists(st.text(), max_size=5))
@example(["  two\r\n\n three\t", "\x00\ufeff\u2028\ue000", "e\u0301 é", "👩🏽‍🚀", END_OF_TEXT, f"a{END_OF_TEXT}b"])
def test_any_text_comes_back_and_none_forges_an_end_of_text(tokenizer, texts):
    ids = list(encode_texts(tokenizer, texts))
    assert [tokenizer.decode(row) for row in ids] == texts
    assert all(EOS_ID not in row for row in ids)


def test_chunked_encoding_is_that_of_each_text(tokenizer, texts, monkeypatch):
    expected = [tokenizer.encode(text).ids for text in texts]
    monkeypatch.setattr("llmnas.data.tokenizer._CHUNK", 20_000)  # less than all texts, more than some
    assert list(encode_texts(tokenizer, iter(texts))) == expected


def test_saved_tokenizer_is_the_same_again(tmp_path, tokenizer):
    path = tmp_path / "new" / "tokenizer.json"
    save_tokenizer(tokenizer, path)
    loaded = load_tokenizer(path)
    assert loaded.to_str() == tokenizer.to_str()
    assert EOS_ID not in loaded.encode(END_OF_TEXT).ids
    assert [file.name for file in path.parent.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-10], "not JSON"),
        (lambda text: text.replace('"merges"', '"mergers"'), "not a tokenizer"),
        (lambda text: "{}", "not a tokenizer"),
        (lambda text: text.replace(END_OF_TEXT, "<s>"), "entry 0 must be <|endoftext|>, found '<s>'"),
    ],
)
def test_damaged_tokenizers_are_refused(tmp_path, tokenizer, damage, message):
    path = tmp_path / "tokenizer.json"
    path.write_text(damage(tokenizer.to_str(pretty=True)))
    with pytest.raises(UserError) as error:
        load_tokenizer(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


def test_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.json: no such file"):
        load_tokenizer(tmp_path / "absent.json")


def test_speeches_survive_the_way_into_a_token_file(tmp_path, tokenizer):
    documents = read_corpus("sotu")[:6]
    split = split_documents(documents, 0.3, seed=0)
    side = [document for document in documents if split.side(document.text) == "validation"]
    text_bytes = sum(len(document.text.encode()) for document in side)
    write_tokens(
        tmp_path / "validation.bin", encode_texts(tokenizer, (d.text for d in side)), VOCAB, EOS_ID, text_bytes
    )
    file = TokenFile.open(tmp_path / "validation.bin")
    text = tokenizer.decode(file.tokens[np.arange(len(file.tokens))].tolist(), skip_special_tokens=False)
    assert text == "".join(document.text + END_OF_TEXT for document in side)
    assert file.info.documents == len(side)
    assert file.info.text_bytes == text_bytes
