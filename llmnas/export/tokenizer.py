"""The tokenizer of an exported folder: every tool reads the file as it is, padding is no end of text if it can be."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from llmnas.errors import UserError
from llmnas.files import ORIGIN_FILE, read_companions, write_json, write_text
from llmnas.files.companions import SETTINGS_FILE, SPECIAL_FILE, TEMPLATE_FILE, read_settings
from llmnas.files.tokenizer_files import open_tokenizer

EOS_ID = 0  # tokenizers of this project have the end of text first
READER = "PreTrainedTokenizerFast"
"""The class that reads `tokenizer.json` as it is. Those of model families put their own splitting in its place."""


def check_tokenizer_file(path: Path, vocab_size: int, eos_id: int = EOS_ID) -> None:
    """Refuse a file that is no tokenizer of this vocabulary with the end of text as entry `eos_id`; `UserError`.

    A pretrained model (there is an `ORIGIN_FILE`, or a companion) may have more rows than its tokenizer has entries,
    and any entry for the end of text.
    """
    tokenizer = open_tokenizer(path)
    rows_left = vocab_size - tokenizer.get_vocab_size()
    pretrained = bool(read_companions(path)) or path.with_name(ORIGIN_FILE).is_file()
    if rows_left < 0 or (rows_left and not pretrained):
        raise UserError(
            f"{path}: has {tokenizer.get_vocab_size()} entries, the model's vocabulary {vocab_size}; they must be equal"
        )
    special = tokenizer.get_added_tokens_decoder().get(eos_id)
    marked = special is not None and special.special
    if tokenizer.id_to_token(eos_id) is None or not (marked or pretrained):
        raise UserError(f"{path}: entry {eos_id} must be a special token that ends a document")


def write_tokenizer(
    source: Path | None, folder: Path, max_seq: int, eos_id: int = EOS_ID, *, split_special: bool = False
) -> None:
    """Copy `tokenizer.json` with what it came with, and say how to use it; nothing without one.

    Args:
        source: a `tokenizer.json`; settings and chat template lie beside that of a pretrained model.
        folder: of the export.
        max_seq: the longest sequence of the model.
        eos_id: its entry that ends a text.
        split_special: "<|endoftext|>" in a text is plain characters, as in training: no text can forge an end.
    """
    if source is None:
        return
    shutil.copyfile(source, folder / "tokenizer.json")
    for name, text in read_companions(source).items():
        if name not in {SETTINGS_FILE, SPECIAL_FILE}:  # they say the same things, so one file says them all
            write_text(folder / name, text)
    write_json(folder / SETTINGS_FILE, _settings(source, max_seq, eos_id, split_special))


def _settings(source: Path, max_seq: int, eos_id: int, split_special: bool) -> dict[str, Any]:
    tokenizer, given = Tokenizer.from_file(str(source)), _plain(read_settings(source))
    end = tokenizer.id_to_token(eos_id)
    ours = {"bos_token": end, "clean_up_tokenization_spaces": False, "padding_side": "left"}
    defaults = {
        "eos_token": end,
        "model_max_length": max_seq,
        "model_input_names": ["input_ids", "attention_mask"],  # transformers 4 adds token_type_ids
    }
    always: dict[str, Any] = {"tokenizer_class": READER, "pad_token": _padding(tokenizer, given, eos_id)}
    if split_special:
        always["split_special_tokens"] = True
    return ({} if given else ours) | defaults | given | always


def pad_id(source: Path, eos_id: int) -> int:
    """The entry that fills up shorter texts of a batch, `eos_id` where there is no other."""
    tokenizer = Tokenizer.from_file(str(source))
    found = tokenizer.token_to_id(_padding(tokenizer, read_settings(source), eos_id))
    return eos_id if found is None else found


def chat_template(source: Path) -> str | None:
    """The Jinja template of a chat that came with a tokenizer; of several the one called default, as tools choose."""
    found: Any = read_companions(source).get(TEMPLATE_FILE, read_settings(source).get("chat_template"))
    if isinstance(found, list):
        found = {str(one.get("name")): one.get("template") for one in found if isinstance(one, dict)}.get("default")
    return found if isinstance(found, str) else None


def _padding(tokenizer: Tokenizer, given: Mapping[str, Any], eos_id: int) -> str:
    """The padding of its own settings, a special token called so, or the unknown one: tools leave padding out of the
    loss, so a model tuned with the end of text as padding never learns to end."""
    end = str(tokenizer.id_to_token(eos_id))
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    named = [_content(given.get("pad_token")), *(text for text in special if "pad" in text.lower())]
    for text in (*named, _content(given.get("unk_token"))):
        if text in special and text != end:
            return text
    return end


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Special tokens by their text: how each is matched stands in `tokenizer.json`."""
    return {name: _content(value) if name.endswith("_token") and value else value for name, value in settings.items()}


def _content(token: Any) -> str:
    """The text of a special token, which settings write as a string or as an object."""
    return str(token.get("content") if isinstance(token, dict) else token)
