"""The tokenizer that a pretrained model came with, and what else of its folder goes on to what is made of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from llmnas.errors import UserError
from llmnas.files import (
    GENERATION_FILE,
    LICENCES,
    ORIGIN_FILE,
    parse_yaml,
    read_companions,
    read_object,
    read_text,
    write_json,
    write_text,
)
from llmnas.files.tokenizer_files import LossyError, open_tokenizer


@dataclass(frozen=True)
class ModelTokenizer:
    """A tokenizer that is used as it is.

    Attributes:
        path: its `tokenizer.json`.
        tokenizer: reads special tokens in a text as plain characters, adds none, cuts nothing off.
        eos_id: the end of text.
        prefix: what it puts before every text (BOS), so that documents begin as the model knows them.
    """

    path: Path
    tokenizer: Tokenizer
    eos_id: int
    prefix: tuple[int, ...] = ()


def read_model_tokenizer(folder: Path, vocab_size: int) -> ModelTokenizer:
    """Read `tokenizer.json` of a model's folder; the end of text is `eos_token_id` of its `config.json`.

    A model may have more rows than its tokenizer has entries (rows padded to a round number), never fewer.

    Raises:
        UserError: missing or damaged files, an entry beyond the model's vocabulary, or no end of text.
    """
    path = folder / "tokenizer.json"
    if not folder.is_dir():
        raise UserError(f"data.tokenizer: {folder}: no such folder; give the folder of a model with its tokenizer.json")
    tokenizer = open_tokenizer(path)
    entries = max(tokenizer.get_vocab().values(), default=-1) + 1
    rows = read_object(folder / "config.json").get("vocab_size")
    if isinstance(rows, int) and entries > rows:
        raise UserError(
            f"{path}: has {entries:,} entries, the model's embedding {rows:,} rows, so nothing reads ids from {rows:,} "
            f"on; load the model with transformers, resize_token_embeddings({entries}), save_pretrained(), and train "
            "or leave out what was added"
        )
    if entries > vocab_size:
        raise UserError(
            f"{path}: has {entries:,} entries, space.base.vocab_size is {vocab_size:,}: another model's? "
            f"Set space.base.vocab_size to the model's (its config.json), or give the model's own tokenizer"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return ModelTokenizer(path, tokenizer, _end_of_text(folder, tokenizer), _prefix(folder, tokenizer))


def _prefix(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """What stands before every text: by the tokenizer's own post-processor, or where its settings ask for BOS."""
    path = folder / "tokenizer_config.json"
    settings = read_object(path) if path.is_file() else {}
    begin = settings.get("bos_token")
    bos = tokenizer.token_to_id(str(begin.get("content") if isinstance(begin, dict) else begin))
    asked = settings.get("add_bos_token")
    if asked is False:
        return ()
    plain, whole = (tokenizer.encode("a", add_special_tokens=add).ids for add in (False, True))
    added = next((whole[:i] for i in range(len(whole)) if whole[i : i + len(plain)] == plain), [])
    return tuple(added) or ((bos,) if asked is True and bos is not None else ())


def copy_tokenizer(source: ModelTokenizer, folder: Path) -> Path:
    """Put into `folder` what an export of a network made from this model needs; returns its `tokenizer.json`.

    The tokenizer with its companions, settings of generation, licences, and `ORIGIN_FILE`: name and licence.

    Raises:
        UserError: a file that cannot be read.
    """
    origin = source.path.parent
    for name in (source.path.name, *LICENCES):
        if (origin / name).is_file():
            write_text(folder / name, read_text(origin / name))
    for name, text in read_companions(source.path).items():
        write_text(folder / name, text)
    config = read_object(origin / "config.json")
    given = origin / GENERATION_FILE
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    settings = read_object(given) if given.is_file() else {}
    settings = {name: config[name] for name in ids if config.get(name) is not None} | settings
    write_json(folder / GENERATION_FILE, {"eos_token_id": source.eos_id} | settings)
    write_json(folder / ORIGIN_FILE, {"base_model": _name(config, origin), "license": _licence(origin)})
    return folder / source.path.name


def _name(config: dict[str, Any], folder: Path) -> str:
    """As published (`owner/name`) where the config says that, else the name of the folder."""
    published = config.get("_name_or_path")
    if isinstance(published, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", published):
        return published
    return folder.resolve().name


def _licence(folder: Path) -> str | None:
    """The `license` of the model card's front matter."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    found = re.match(r"---\n(.*?)\n---", read_text(card), re.DOTALL)
    try:
        values = parse_yaml(found[1], str(card)) if found else None
    except UserError:  # a card is prose; nothing is computed from it
        return None
    licence = values.get("license") if isinstance(values, dict) else None
    return licence if isinstance(licence, str) else None


def require_lossless(own: ModelTokenizer, texts: Iterable[tuple[str, str]]) -> None:
    """Refuse a tokenizer that loses text of these (name, text), or gives it other tokens each time; `UserError`."""
    try:
        open_tokenizer(own.path, texts)
    except LossyError as error:
        raise UserError(f"{error}; to train on what it keeps, set data.lossy_tokenizer: true") from None


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
    ours, theirs = own.tokenizer.get_vocab(), open_tokenizer(path).get_vocab()
    if ours != theirs:
        raise UserError(
            f"data.tokenizer: {own.path} is not the tokenizer of train.init_from: {len(ours):,} entries against "
            f"{len(theirs):,}, {len(ours.items() & theirs.items()):,} alike; set data.tokenizer to {model}"
        )
