"""Text of others (file names, words of a file) before it reaches a terminal."""

from __future__ import annotations

import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, directions and joiners, lone surrogates, line ends


def one_line(text: object) -> str:
    """The text with every character that is no glyph as an escape: it ends no line and moves no cursor."""
    return "".join(_escaped(letter) if unicodedata.category(letter) in _HIDDEN else letter for letter in str(text))


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
