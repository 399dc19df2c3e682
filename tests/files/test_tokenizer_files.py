"""Tokenizers of strangers: whatever the file does, this process lives and says in one line what is wrong."""

import base64
import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from llmnas.errors import UserError
from llmnas.files.tokenizer_files import LossyError, open_tokenizer

TEXT = [("a.txt", 'Größe "9"\n\n x'), ("b.txt", "é = é")]  # the second é is two characters


@pytest.fixture(scope="module")
def stored():
    """A byte-level tokenizer of bytes alone."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return json.loads(tokenizer.to_str())


def written(path, value):
    path.write_text(json.dumps(value))
    return path


def test_a_sound_tokenizer_is_loaded(tmp_path, stored):
    path = written(tmp_path / "tokenizer.json", stored)
    assert open_tokenizer(path, TEXT).encode("ab").ids == Tokenizer.from_file(str(path)).encode("ab").ids
    composed = stored | {"normalizer": json.loads(normalizers.NFC().__getstate__())}
    open_tokenizer(written(path, composed), TEXT)  # canonically equal: nothing is lost


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"normalizer": {"type": "Lowercase"}}, 'loses text: a.txt: \'Größe "9"\\n\\n x\' comes back as \'größe "9"'),
        ({"normalizer": {"type": "Replace", "pattern": {"String": "x"}, "content": ""}}, "(character 12)"),
        ({"decoder": None}, "loses text: a.txt"),
    ],
    ids=["lower case", "cut off", "no decoder"],
)
def test_one_that_loses_text_is_refused_with_the_place(tmp_path, stored, change, words):
    path = written(tmp_path / "tokenizer.json", stored | change)
    open_tokenizer(path)
    with pytest.raises(LossyError) as error:
        open_tokenizer(path, TEXT)
    assert words in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_only_so_much_of_the_text_is_tried(tmp_path, stored):
    lower = stored | {"normalizer": {"type": "Lowercase"}}
    texts = [(f"{i}.txt", "a" * 1000) for i in range(1100)] + [("late.txt", "A")]
    open_tokenizer(written(tmp_path / "tokenizer.json", lower), texts)


CHARSMAP = base64.b64encode(b"\x04\x00\x00\x00" + b"\x00" * 4 + b"abc\x00").decode()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}}, "does not tokenize (Panic"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "x"}}, "not a tokenizer"),
        ({"model": {"type": "Magic"}}, "not a tokenizer"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}}, "not a tokenizer"),
        ({"version": None, "x": [[[]]]}, "not a tokenizer"),
    ],
    ids=["panic", "bad map", "another model", "bad pattern", "nonsense"],
)
def test_what_cannot_be_used_is_one_line(tmp_path, stored, change, words):
    path = written(tmp_path / "tokenizer.json", stored | change)
    with pytest.raises(UserError) as error:
        open_tokenizer(path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dropout", [0.5, 1e-9])
def test_one_that_is_not_deterministic_is_refused(tmp_path, stored, dropout):
    path = written(tmp_path / "tokenizer.json", stored | {"model": stored["model"] | {"dropout": dropout}})
    with pytest.raises(UserError, match=f"not deterministic: model.dropout = {dropout:g}"):
        open_tokenizer(path)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import os; os.abort()", r"it ends the process that loads it \(SIGABRT\)"),
        ("import os; os._exit(3)", r"it ends the process that loads it \(exit status 3\)"),
        ("import time; time.sleep(60)", "takes more than 0.5 s to load and try"),
    ],
)
def test_a_trial_that_dies_or_hangs_is_one_line(tmp_path, stored, monkeypatch, body, words):
    """What a library aborts on differs by version, so the trial itself is made to."""
    trial = tmp_path / "trial.py"
    trial.write_text(body)
    monkeypatch.setattr("llmnas.files.tokenizer_files._TRIAL", trial)
    with pytest.raises(UserError, match=words):
        open_tokenizer(written(tmp_path / "tokenizer.json", stored), seconds=0.5 if "sleep" in body else 60)
