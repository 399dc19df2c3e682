"""One file to documents: plain text, rows of JSON and CSV, parquet; packed ones; nothing is held but one document."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from llmnas.data.rows import MOST_DOCUMENT, BadRows, Document, csv_rows, decoded, json_file, json_lines, too_long
from llmnas.files import PACKED, open_unpacked, read_most

_PLAIN = (".txt", ".md")
_ROWS: dict[str, Callable[[str, IO[bytes], Path, str, BadRows], Iterator[Document]]] = {
    ".jsonl": json_lines, ".ndjson": json_lines, ".json": json_file, ".csv": csv_rows,
}  # fmt: skip
KINDS = ".txt, .md, .jsonl, .ndjson, .json, .csv, the same with .gz, .zst, .xz or .bz2 behind it, or .parquet"
TEXT = "text"
"""The field or column that holds a document, where nothing else is said."""


def is_text(path: Path) -> bool:
    """Whether the name is that of a file that `read_file` reads."""
    return _kind(path) in (*_PLAIN, *_ROWS, ".parquet")


def read_file(name: str, path: Path, text_field: str = TEXT, bad: BadRows | None = None) -> Iterator[Document]:
    """The documents of a file, called `name` or `name:line`.

    Args:
        name: of the file, below its corpus.
        path: of the file.
        text_field: the field or column of rows that holds the text; dotted where it lies within others.
        bad: takes rows that hold none; without it there may be none.

    Raises:
        UserError: cannot be read, damaged, not UTF-8 (with the byte), no such column, or a bad row (with its number)
            that may not be passed over.
    """
    kind, bad = _kind(path), bad or BadRows()
    if kind == ".parquet":
        from llmnas.data.parquet import parquet_rows  # takes seconds, and few have such files

        yield from parquet_rows(name, path, text_field, bad)
        return
    with open_unpacked(path) as stream:
        if kind in _ROWS:
            yield from _ROWS[kind](name, stream, path, text_field, bad)
        else:
            text = read_most(stream, MOST_DOCUMENT + 1)
            if len(text) > MOST_DOCUMENT:
                raise too_long(str(path))
            yield Document(name, decoded(text, path, ""))


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if len(suffixes) == 2 and suffixes[1] in PACKED and suffixes[0] in (*_PLAIN, *_ROWS):
        return suffixes[0]
    return suffixes[-1] if suffixes and suffixes[-1] not in PACKED else ""
