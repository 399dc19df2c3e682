"""Loads a stranger's tokenizer and tries it; a process of its own, since a bad file can end the process it is read in.

Reads {"tokenizer": text of tokenizer.json, "texts": [[name, text], ...]} on stdin and writes {"fault": words or null}.
Started by path: it imports nothing of llmnas, so that it starts at once.
"""

import json
import resource
import sys
import unicodedata
from typing import Any

from tokenizers import Tokenizer

TEXT = "The quick brown fox, 1234567.8; naïve Größe, 你好, 🙂 \n\n\tdef f(x): return x <|endoftext|>" * 3
MEMORY = 1 << 34
LOSES = "loses text"
_AROUND = 20  # characters that are shown of a place where text was lost


def fault(data: str, texts: list[tuple[str, str]]) -> str | None:
    """What is wrong with a tokenizer, None where nothing is: the texts have to come back as they were."""
    try:
        tokenizer = Tokenizer.from_str(data)
    except BaseException as error:  # noqa: BLE001 (a panic of the library is no Exception)
        return f"not a tokenizer ({error})"
    try:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        dropout = getattr(tokenizer.model, "dropout", None)
        if dropout:
            return f"not deterministic: model.dropout = {dropout:g} gives the same text other tokens each time"
        for name, text in [("", TEXT), *texts]:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            if ids != tokenizer.encode(text, add_special_tokens=False).ids:
                return "not deterministic: it gives the same text other tokens each time"
            back = tokenizer.decode(ids, skip_special_tokens=False)
            if name and (lost := _lost(text, back)):
                return f"{LOSES}: {name}: {lost}"
    except BaseException as error:  # noqa: BLE001
        return f"does not tokenize ({type(error).__name__}: {error})"
    return None


def _lost(text: str, back: str) -> str:
    """The first place where a text did not come back; canonically equal characters (NFC) are the same text."""
    if text == back:
        return ""
    text, back = (unicodedata.normalize("NFC", part) for part in (text, back))
    if text == back:
        return ""
    place = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
    first = max(0, place - 5)
    return f"{text[first : place + _AROUND]!r} comes back as {back[first : place + _AROUND]!r} (character {place})"


def main() -> None:
    """Try what stdin holds, without a core dump of the user's text, and without all memory of the machine."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most), most))
    asked: dict[str, Any] = json.load(sys.stdin)
    json.dump({"fault": fault(asked["tokenizer"], [(name, text) for name, text in asked["texts"]])}, sys.stdout)


if __name__ == "__main__":
    main()
