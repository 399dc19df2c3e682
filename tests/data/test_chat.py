"""Conversations become what transformers makes of them, and answers are told apart from what they answer."""

import json

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from llmnas.data import Encoder, Sequences, open_corpus, read_model_tokenizer
from llmnas.errors import UserError
from llmnas.supernet import split_windows

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ '<|begin|>' }}{% for m in messages %}<|header|>{{ m['role'] }}<|/header|>\n\n{{ m['content'] | trim }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|header|>assistant<|/header|>\n\n{% endif %}"
)
FORGETS = (  # as templates of thinking models, which keep the thoughts of the last answer only
    "{% for m in messages %}<|im_start|>{{ m['content'] if loop.last else m['content'][:2] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin|>", "<|header|>", "<|/header|>", "<|eot|>")
TALK = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": " What is 2 + 2, ünïcödé 🙂? "},
    {"role": "assistant", "content": "Four."}, {"role": "user", "content": "And 3?"},
    {"role": "assistant", "content": "Five, naïve\nfriend."},
]  # fmt: skip


def model_folder(folder, template):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["the state of the union, four five " * 20], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id("<|endoftext|>")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    if template:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": end, "vocab_size": tokenizer.get_vocab_size()}))
    return folder


def encoded(folder, lines, completions):
    path = folder / "talks.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    found = read_model_tokenizer(folder, 400)
    return list(Encoder(found.tokenizer, found, completions).encode(open_corpus(str(path)))), found


@pytest.mark.parametrize("template", [CHATML, LLAMA3], ids=["chatml", "llama3"])
def test_ids_are_those_of_transformers_and_answers_are_told_apart(tmp_path, template):
    folder = model_folder(tmp_path, template)
    lines = [
        {"text": "Plain <|im_end|> text."},
        {"messages": TALK},
        {"prompt": "Ask", "completion": "Tell"},
        {"prompt": TALK[:3], "completion": TALK[3:]},
    ]
    found, model = encoded(folder, lines, completions=True)
    stock = AutoTokenizer.from_pretrained(folder)
    talks = [TALK, [{"role": "user", "content": "Ask"}, {"role": "assistant", "content": "Tell"}], TALK]
    for document, talk in zip(found[1:], talks, strict=True):
        assert document.ids == stock.apply_chat_template(talk, tokenize=True, return_dict=False)
    special = {model.tokenizer.token_to_id(token) for token in SPECIAL}
    assert not special & set(found[0].ids)  # in a plain text they are characters
    assert all(found[0].learned)
    end = "<|im_end|>\n" if template == CHATML else "<|eot|>"
    answers = [f"Four.{end}Five, naïve\nfriend.{end}", f"Tell{end}", f"Five, naïve\nfriend.{end}"]
    for document, answer in zip(found[1:], answers, strict=True):
        learned = [i for i, flag in zip(document.ids, document.learned, strict=True) if flag]
        assert model.tokenizer.decode(learned, skip_special_tokens=False) == answer
    plain, _ = encoded(folder, lines, completions=False)
    assert [document.ids for document in plain] == [document.ids for document in found]


@pytest.mark.parametrize(
    ("template", "line", "words"),
    [
        (None, {"messages": TALK}, "has no chat template, and the corpus holds conversations"),
        (FORGETS, {"messages": TALK}, "talks.jsonl:1: data.loss_on: completions: the chat template of "),
        ("{{ raise_exception('only users talk') }}", {"messages": TALK}, "does not take it (only users talk)"),
        (CHATML, {"messages": []}, "line 1: must be a mapping with a string"),
        (CHATML, {"messages": [{"role": "user"}]}, "line 1: must be a mapping with a string"),
        (CHATML, {"messages": [{"role": "user", "content": 3}]}, "line 1: must be a mapping with a string"),
        (CHATML, {"prompt": "a"}, "line 1: must be a mapping with a string"),
        (CHATML, {"prompt": "a", "completion": "\ud800"}, "line 1: not text in UTF-8"),
    ],
)
def test_what_cannot_be_written_down_is_one_line(tmp_path, template, line, words):
    with pytest.raises(UserError) as error:
        encoded(model_folder(tmp_path, template), [line], completions=True)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_conversation_needs_a_model(tmp_path):
    (tmp_path / "talks.jsonl").write_text(json.dumps({"messages": TALK}))
    with pytest.raises(UserError, match=r"talks.jsonl:1: a conversation is written down by a model's chat template"):
        list(Encoder(Tokenizer(models.BPE()), None, False).encode(open_corpus(str(tmp_path))))


def test_windows_hold_what_is_only_read():
    tokens, learned = np.arange(100, 141, dtype=np.uint16), np.zeros(41, np.uint16)
    learned[[5, 6, 33]] = 1
    sequences = Sequences(tokens, 8, seed=0, learned=learned)
    windows = torch.from_numpy(sequences.fixed(9))
    inputs, targets = split_windows(windows)
    assert len(windows) == 2  # the others have no target
    for row, wanted in zip(range(2), ([105, 106], [133]), strict=True):
        assert targets[row][targets[row] >= 0].tolist() == wanted
    plain, _ = split_windows(torch.from_numpy(Sequences(tokens, 8, seed=0).fixed(5)))
    assert {tuple(row) for row in inputs.tolist()} < {tuple(row) for row in plain.tolist()}
    with pytest.raises(UserError, match=r"no window of the text holds a token to learn from"):
        Sequences(tokens, 8, seed=0, learned=np.zeros(41, np.uint16)).fixed(3)
