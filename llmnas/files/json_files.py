"""JSON that is read back, ours and that of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmnas.errors import UserError


def read_json(path: Path) -> Any:
    """Read JSON that llmnas wrote; a damaged file is a `UserError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: damaged JSON ({error}); delete it to have it made again") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object that somebody else wrote: a model's `config.json`, settings of DeepSpeed.

    Raises:
        UserError: no such file, a folder, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not a JSON file") from None
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON, a number that cannot be
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object, found {type(value).__name__}")
    return value
