"""The tokenizer that a pretrained model came with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from llmnas.errors import UserError
from llmnas.files import read_object


@dataclass(frozen=True)
class ModelTokenizer:
    """A tokenizer that is used as it is.

    Attributes:
        path: its `tokenizer.json`.
        tokenizer: reads special tokens in a text as plain characters, adds none, cuts nothing off.
        eos_id: the end of text.
    """

    path: Path
    tokenizer: Tokenizer
    eos_id: int


def read_model_tokenizer(folder: Path, vocab_size: int) -> ModelTokenizer:
    """Read `tokenizer.json` of a model's folder; the end of text is `eos_token_id` of its `config.json`.

    A model may have more rows than its tokenizer has entries (rows padded to a round number), never fewer.

    Raises:
        UserError: missing or damaged files, an entry beyond the model's vocabulary, or no end of text.
    """
    path = folder / "tokenizer.json"
    if not folder.is_dir():
        raise UserError(f"data.tokenizer: {folder}: no such folder; give the folder of a model with its tokenizer.json")
    tokenizer = _open(path)
    entries = max(tokenizer.get_vocab().values(), default=-1) + 1
    if entries > vocab_size:
        raise UserError(
            f"{path}: has {entries:,} entries, space.base.vocab_size is {vocab_size:,}: another model's? "
            f"Set space.base.vocab_size to the model's (its config.json), or give the model's own tokenizer"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return ModelTokenizer(path, tokenizer, _end_of_text(folder, tokenizer))


def _open(path: Path) -> Tokenizer:
    read_object(path)  # says "no such file" and "not JSON" in our words
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 (tokenizers raises nothing more precise)
        raise UserError(f"{path}: not a tokenizer ({error})") from None


def _end_of_text(folder: Path, tokenizer: Tokenizer) -> int:
    found = read_object(folder / "config.json").get("eos_token_id")
    eos_id = found[0] if isinstance(found, list) and found else found
    # `id_to_token` overflows where the number is no unsigned 32-bit one
    if type(eos_id) is not int or not 0 <= eos_id < 2**32 or tokenizer.id_to_token(eos_id) is None:
        raise UserError(
            f"{folder / 'config.json'}: eos_token_id = {found!r} is no entry of tokenizer.json; documents need an end"
        )
    return eos_id


def require_same_tokenizer(own: ModelTokenizer, model: Path) -> None:
    """Refuse text in the tokens of another model than the one that training starts from.

    Raises:
        UserError: the model's folder has a tokenizer of its own that is damaged or has other entries.
    """
    path = model / "tokenizer.json"
    if not path.is_file() or path.samefile(own.path):
        return
    ours, theirs = own.tokenizer.get_vocab(), _open(path).get_vocab()
    if ours != theirs:
        raise UserError(
            f"data.tokenizer: {own.path} is not the tokenizer of train.init_from: {len(ours):,} entries against "
            f"{len(theirs):,}, {len(ours.items() & theirs.items()):,} alike; set data.tokenizer to {model}"
        )
