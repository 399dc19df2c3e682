"""What an export keeps of the pretrained model that it was made from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from llmnas.export.tokenizer import pad_id
from llmnas.files import GENERATION_FILE, LICENCES, ORIGIN_FILE, read_json, read_object, write_json


def write_generation(tokenizer_path: Path | None, end: int | None, folder: Path) -> None:
    """Write `generation_config.json`, and its ids into `config.json`, which is there.

    A pretrained model's settings stay as they came, word for word (transformers refuses to write some that it reads,
    such as a temperature without sampling); else the end of text stands for everything, but for padding where there is
    another entry.

    Args:
        tokenizer_path: of the run; the settings lie beside it.
        end: the token that ends a text, None without a tokenizer.
        folder: of the export.
    """
    given = tokenizer_path and tokenizer_path.with_name(GENERATION_FILE)
    padding = None if tokenizer_path is None or end is None else pad_id(tokenizer_path, end)
    plain = {"bos_token_id": end, "eos_token_id": end}
    settings = {"pad_token_id": padding} | (read_object(given) if given and given.is_file() else plain)
    write_json(folder / GENERATION_FILE, settings)
    config = folder / "config.json"
    ids = {name: settings.get(name) for name in ("bos_token_id", "eos_token_id")}
    write_json(config, read_json(config) | ids)


def hand_on(tokenizer_path: Path | None, folder: Path) -> dict[str, Any]:
    """Copy the licences of a pretrained model; returns what `Card` says of where the network is from."""
    if tokenizer_path is None or not tokenizer_path.with_name(ORIGIN_FILE).is_file():
        return {}
    for path in map(tokenizer_path.with_name, LICENCES):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    origin = read_object(tokenizer_path.with_name(ORIGIN_FILE))
    return {"base_model": origin.get("base_model"), "licence": origin.get("license")}
