"""Tokenizers that others made: tried in a child process before this one loads them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer

from llmnas.errors import UserError
from llmnas.files.json_files import parse_json
from llmnas.files.opening import read_bytes
from llmnas.files.tokenizer_trial import LOSES

MOST_TOKENIZER = 1 << 27  # bytes of a tokenizer.json; those of 262,144 entries have 33 million
MOST_TRIED = 1 << 20
"""Characters of the user's text that have to come back as they were."""
SECONDS = 120
_TRIAL = Path(__file__).with_name("tokenizer_trial.py")


class LossyError(UserError):
    """A tokenizer that does not give back the text that it was given."""


def open_tokenizer(path: Path, texts: Iterable[tuple[str, str]] = (), seconds: float = SECONDS) -> Tokenizer:
    """Load a `tokenizer.json` after a child process has loaded and tried it.

    Args:
        path: of the file.
        texts: (name, text) of documents; as many as `MOST_TRIED` characters are encoded and decoded.
        seconds: time that the trial may take.

    Raises:
        UserError: no such file, no tokenizer, one that ends the process or takes too long, that gives a text other
            tokens each time, or that loses text (canonically equal characters are the same text); says which.
    """
    try:
        data = read_bytes(path, MOST_TOKENIZER).decode()
        value = parse_json(data)
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object, found {type(value).__name__}")
    fault = _tried(data, list(_first(texts)), seconds)
    if fault is not None and fault.startswith(LOSES):
        raise LossyError(f"{path}: {' '.join(fault.split())}")
    if fault is not None:
        raise UserError(f"{path}: {' '.join(fault.split())}")
    return Tokenizer.from_str(data)


def _first(texts: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    """The first `MOST_TRIED` characters, whole documents but for the last."""
    left = MOST_TRIED
    for name, text in texts:
        yield name, text[:left]
        left -= len(text)
        if left <= 0:
            return


def _tried(data: str, texts: list[tuple[str, str]], seconds: float) -> str | None:
    """What a child process says is wrong with a tokenizer, or how it ended; None where it is fine."""
    command = [sys.executable, "-I", str(_TRIAL)]
    asked = json.dumps({"tokenizer": data, "texts": texts})
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            command, input=asked.encode(), capture_output=True, timeout=seconds, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        return f"takes more than {seconds:g} s to load and try"
    try:
        return dict(json.loads(done.stdout)).get("fault")
    except (ValueError, TypeError):
        how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit status {done.returncode}"
        return f"not a tokenizer: it ends the process that loads it ({how})"
