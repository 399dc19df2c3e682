"""The parent's side of `tokenizer_child.py`."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from llmnas.errors import RunError

_CHILD = Path(__file__).with_name("tokenizer_child.py")


def trained(tokenizer: Tokenizer, texts: Iterable[str], options: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer, trained in a child process, so that this one hears signals meanwhile; it ends with this one.

    Args:
        tokenizer: untrained.
        texts: to learn from.
        options: of the BPE trainer.

    Raises:
        RunError: the child process ended; says how.
    """
    asked = {"tokenizer": tokenizer.to_str(), "options": dict(options)}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-I", str(_CHILD)], stdin=pipe, stdout=pipe, stderr=pipe) as child:
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended: how, is found out below
                for value in itertools.chain([asked], texts, [None]):
                    child.stdin.write(json.dumps(value).encode() + b"\n")  # type: ignore[union-attr]
            out, said = child.communicate()
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        raise RunError(f"training the tokenizer: its process ended ({_how(child.returncode, said)})")
    return Tokenizer.from_str(out.decode())


def _how(status: int, said: bytes) -> str:
    """A signal, or the last line of what it said."""
    if status == -signal.SIGKILL:
        return "SIGKILL: out of memory? Give less text, or a ready tokenizer with data.tokenizer"
    if status < 0:
        return signal.Signals(-status).name
    return (said.decode(errors="replace").strip().splitlines() or [f"exit status {status}"])[-1]
