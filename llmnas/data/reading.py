"""One file to documents: plain text, JSON lines and parquet; gzip and Zstandard; nothing is held but one document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from llmnas.errors import UserError
from llmnas.files import open_unpacked, parse_json, read_most

KINDS = ".txt, .md, .jsonl, the same with .gz or .zst behind it, or .parquet"
_PLAIN = (".txt", ".md", ".jsonl")
_PACKED = (".gz", ".zst")
MOST_DOCUMENT = 1 << 28
"""Bytes of one document, which is held and encoded whole."""


_TOO_LONG = (
    f"a document of more than {MOST_DOCUMENT:,} bytes; give documents apart: several files, or .jsonl with one a line"
)


@dataclass(frozen=True)
class Document:
    """One text that is never cut: `id` says where it came from (file, or file:line)."""

    id: str
    text: str


def is_text(path: Path) -> bool:
    """Whether the name is that of a file that `read_file` reads."""
    return _kind(path) in (*_PLAIN, ".parquet")


def read_file(name: str, path: Path) -> Iterator[Document]:
    """The documents of a file, called `name` or `name:line`.

    Raises:
        UserError: cannot be read, damaged, not UTF-8 (with the byte), or a bad line (with its number).
    """
    kind = _kind(path)
    if kind == ".parquet":
        from llmnas.data.parquet import texts  # takes seconds, and few have such files

        yield from (Document(f"{name}:{row}", text) for row, text in enumerate(texts(path), start=1))
        return
    with open_unpacked(path) as stream:
        if kind == ".jsonl":
            for number, line in _lines(stream, path):
                yield Document(f"{name}:{number}", _text_of(line, path, number))
        else:
            text = read_most(stream, MOST_DOCUMENT + 1)
            if len(text) > MOST_DOCUMENT:
                raise UserError(f"{path}: {_TOO_LONG}")
            yield Document(name, _decoded(text, path, 0))


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if len(suffixes) == 2 and suffixes[1] in _PACKED and suffixes[0] in _PLAIN:
        return suffixes[0]
    return suffixes[-1] if suffixes and suffixes[-1] not in _PACKED else ""


def _lines(stream: IO[bytes], path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines that are not blank. Only a newline byte ends one, never U+2028 inside a string."""
    place = 0
    lines = iter(lambda: stream.readline(MOST_DOCUMENT + 1), b"")
    for number, line in enumerate(lines, start=1):
        if len(line) > MOST_DOCUMENT:
            raise UserError(f"{path}: line {number}: {_TOO_LONG}")
        text = _decoded(line, path, place)
        place += len(line)
        if text.strip():
            yield number, text


def _decoded(data: bytes, path: Path, place: int) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {place + error.start})") from None
    return text.removeprefix("\ufeff") if place == 0 else text  # a byte order mark is no text


def _text_of(line: str, path: Path, number: int) -> str:
    try:
        text = parse_json(line)["text"]
        text.encode()  # JSON can spell lone surrogates, which no UTF-8 file and no tokenizer can hold
    except ValueError as error:
        raise UserError(f"{path}: line {number}: not JSON in UTF-8 ({error})") from None
    except (TypeError, KeyError, AttributeError):
        raise UserError(f'{path}: line {number}: must be a mapping with a string "text"') from None
    return str(text)
