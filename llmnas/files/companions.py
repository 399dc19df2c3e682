"""What lies beside a pretrained model's `tokenizer.json` and belongs to it: settings are copied, code never is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmnas.files.json_files import read_object
from llmnas.files.opening import read_text

SETTINGS_FILE = "tokenizer_config.json"
SPECIAL_FILE = "special_tokens_map.json"
TEMPLATE_FILE = "chat_template.jinja"
_TOKENS = {"additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"}
_SETTINGS = _TOKENS | {
    "add_bos_token", "add_eos_token", "add_prefix_space", "added_tokens_decoder", "chat_template",
    "clean_up_tokenization_spaces", "do_lower_case", "errors", "legacy", "model_input_names", "model_max_length",
    "padding_side", "spaces_between_special_tokens", "split_special_tokens", "tokenizer_class", "truncation_side",
    "use_default_system_prompt",
}  # fmt: skip


def read_companions(tokenizer_path: Path) -> dict[str, str]:
    """File name -> text of what lies beside a `tokenizer.json`, as it may be handed on.

    Of JSON files the known settings and special tokens are kept and nothing else: `auto_map` names code, and other
    keys may one day.

    Raises:
        UserError: a file is no JSON object, or not UTF-8.
    """
    readers: Mapping[str, Callable[[Path], str]] = {
        SETTINGS_FILE: lambda path: _kept(path, _SETTINGS),
        SPECIAL_FILE: lambda path: _kept(path, _TOKENS),
        TEMPLATE_FILE: read_text,
    }
    return {name: read(path) for name, read in readers.items() if (path := tokenizer_path.with_name(name)).is_file()}


def read_settings(tokenizer_path: Path) -> dict[str, Any]:
    """What the JSON files of `read_companions` say together; nothing where there are none."""
    found = read_companions(tokenizer_path)
    settings: dict[str, Any] = {}
    for name in (SPECIAL_FILE, SETTINGS_FILE):
        settings |= json.loads(found.get(name, "{}"))
    return settings


def _kept(path: Path, known: set[str]) -> str:
    """A JSON object without what nobody asked for; `..._token` names a special token."""
    kept = {key: value for key, value in read_object(path).items() if key in known or key.endswith("_token")}
    return json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
