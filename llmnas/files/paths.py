"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from llmnas.errors import UserError


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path that a user gave, with `~` and `~name` for home folders.

    A shell expands `~` only at the beginning of a word: not in `--run-dir=~/runs`, a config or a notebook.

    Raises:
        UserError: no path, or the home folder of nobody.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: no home folder of that name; write the whole path") from None
    except TypeError:
        raise UserError(f"{path!r} is not a path; write it as text") from None


def _expand_home(text: str) -> str:
    """A path in a config with its home folder written out; all others as they are.

    Raises:
        ValueError: the home folder of nobody, as pydantic wants it said.
    """
    if not text.startswith("~"):
        return text
    try:
        return str(user_path(text))
    except UserError as error:
        raise ValueError(str(error)) from None


PathText = Annotated[str, AfterValidator(_expand_home)]
"""The type of a config's key that holds a path: text, home folders written out."""
