"""Rows of text: JSON lines, a JSON list, CSV; bad ones are counted and left out as far as was agreed."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from llmnas.errors import UserError
from llmnas.files import parse_json, read_most

MOST_DOCUMENT = 1 << 28
"""Bytes of one document, which is held and encoded whole."""
_BLOCK = 1 << 16
LISTED = 1000
"""Bad rows that are named; all are counted."""


@dataclass(frozen=True)
class Document:
    """One text that is never cut.

    Attributes:
        id: where it came from (file, or file:line).
        text: its words; of a conversation those of all messages.
        messages: of a conversation, as chat templates take them; none where it is plain text.
        answers: places of the messages that a model is to learn to give.
    """

    id: str
    text: str
    messages: tuple[Mapping[str, Any], ...] = ()
    answers: tuple[int, ...] = ()


@dataclass
class BadRows:
    """Rows that hold no text of the kind that was asked for: `most` of them are passed over."""

    most: int = 0
    count: int = 0
    listed: list[str] = field(default_factory=list)

    def note(self, error: UserError) -> None:
        """Pass over a row; the error itself where none may be, and one that says so where it is one too many."""
        if not self.most:
            raise error
        self.count += 1
        if self.count > self.most:
            raise UserError(f"{error}; bad row {self.count:,}, and at most {self.most:,} may be passed over (bad_rows)")
        if len(self.listed) < LISTED:
            self.listed.append(str(error))


def too_long(place: str) -> UserError:
    """What is said of a document that is too long."""
    return UserError(
        f"{place}: a document of more than {MOST_DOCUMENT:,} bytes; give documents apart: several files, or .jsonl "
        "with one a line"
    )


def json_lines(name: str, stream: IO[bytes] | _Rest, path: Path, text_field: str, bad: BadRows) -> Iterator[Document]:
    """A document a line; raises as `BadRows.note` does, and for a line that is too long."""
    for number, line in _lines(stream, path):
        try:
            text = decoded(line, path, f"line {number}: ")
            if not text.strip():
                continue
            value = _parsed(text, path, f"line {number}")
            found = document(f"{name}:{number}", value, path, f"line {number}", text_field)
        except UserError as error:
            bad.note(error)
            continue
        yield found


def json_file(name: str, stream: IO[bytes], path: Path, text_field: str, bad: BadRows) -> Iterator[Document]:
    """A list of rows, where that is how the file begins, else `json_lines`."""
    begin = [read_most(stream, len(codecs.BOM_UTF8))]
    first, held = begin[0].removeprefix(codecs.BOM_UTF8).lstrip(), 0
    while not first and held <= MOST_DOCUMENT and (piece := stream.read(_BLOCK)):
        begin.append(piece)
        first, held = piece.lstrip(), held + len(piece)
    if not first.startswith(b"["):
        yield from json_lines(name, _Rest(b"".join(begin), stream), path, text_field, bad)
        return
    data = b"".join([*begin, read_most(stream, MOST_DOCUMENT + 1)])
    if len(data) > MOST_DOCUMENT:
        raise UserError(
            f"{path}: a list of more than {MOST_DOCUMENT:,} bytes, which is read whole; write it as .jsonl, one a line"
        )
    for number, value in enumerate(_parsed(decoded(data, path, ""), path, ""), start=1):
        try:
            found = document(f"{name}:{number}", value, path, f"row {number}", text_field)
        except UserError as error:
            bad.note(error)
            continue
        yield found


def csv_rows(name: str, stream: IO[bytes], path: Path, text_field: str, bad: BadRows) -> Iterator[Document]:
    """A document a row, in the column of that name; the first row has the names of the columns.

    Raises:
        UserError: no such column, a quote without end, and as `BadRows.note` does.
    """
    csv.field_size_limit(MOST_DOCUMENT)  # of this process; Python's own would refuse texts of 131,072 characters
    # a byte that is no UTF-8 makes its row a bad one, not the file
    lines = (line.decode(errors="surrogateescape") for _, line in _lines(stream, path))
    first = next(lines, "").removeprefix("\ufeff")
    reader = csv.reader(itertools.chain([first], lines), strict=True)
    try:
        header = next(reader, [])
        if text_field not in header:
            raise UserError(f"{path}: no column {text_field!r}; its columns: {', '.join(header)[:500]} (text_field)")
        column = header.index(text_field)
        for row in reader:
            place = f"{path}: line {reader.line_num}"
            try:
                if not row:
                    continue
                if len(row) != len(header):
                    raise UserError(f"{place}: {len(row)} fields, the first line names {len(header)}")
                found = Document(f"{name}:{reader.line_num}", _utf8(row[column], place))
            except UserError as error:
                bad.note(error)
                continue
            yield found
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: not CSV ({error})") from None


def document(name: str, value: object, path: Path, place: str, text_field: str) -> Document:
    """A row: its text field, `messages`, or `prompt` and `completion` (texts, or lists of messages).

    Raises:
        UserError: none of these; or a text that is not UTF-8.
    """
    where = f"{path}: {place}"
    text = field_of(value, text_field)
    if isinstance(text, str):
        return Document(name, _utf8(text, where))
    found = _messages(value) if isinstance(value, Mapping) else None
    if found is not None:
        return Document(name, _utf8("\n".join(str(message["content"]) for message in found[0]), where), *found)
    raise UserError(
        f'{where}: must be a mapping with a string "{text_field}", or a conversation: "messages" (a list of '
        '{"role": ..., "content": ...}, both strings), or "prompt" and "completion" (strings or such lists)'
    )


def field_of(value: object, name: str) -> object:
    """The field of that name; else of a dotted name what lies within (`meta.body`); None where there is none."""
    if not isinstance(value, Mapping):
        return None
    if name in value:
        return value[name]
    first, dot, rest = name.partition(".")
    return field_of(value.get(first), rest) if dot else None


def decoded(data: bytes, path: Path, place: str) -> str:
    """Text of UTF-8 without a byte order mark; `UserError` with the byte that is none."""
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {place}not UTF-8 (byte {error.start})") from None


def _lines(stream: IO[bytes] | _Rest, path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of lines. Only a newline byte ends one, never U+2028 inside a string."""
    for number, line in enumerate(iter(lambda: stream.readline(MOST_DOCUMENT + 1), b""), start=1):
        if len(line) > MOST_DOCUMENT:
            raise too_long(f"{path}: line {number}")
        yield number, line


class _Rest:
    """A stream of which the beginning has been read."""

    def __init__(self, begin: bytes, stream: IO[bytes]) -> None:
        self._begin, self._stream = io.BytesIO(begin), stream

    def readline(self, most: int) -> bytes:
        """The next line, or `most` bytes of it."""
        line = self._begin.readline(most)
        return line if line.endswith(b"\n") or len(line) == most else line + self._stream.readline(most - len(line))


def _parsed(text: str, path: Path, place: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise UserError(f"{path}: {f'{place}: ' if place else ''}not JSON in UTF-8 ({error})") from None


def _utf8(text: str, where: str) -> str:
    """JSON can spell lone surrogates, which no UTF-8 file and no tokenizer can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: not text in UTF-8 ({error})") from None
    return text


def _messages(value: Mapping[str, Any]) -> tuple[tuple[Mapping[str, Any], ...], tuple[int, ...]] | None:
    """The messages of a conversation and the places of its answers; None where it is none."""
    if "messages" in value:
        found = _list_of_messages(value["messages"], "user")
        if found is None:
            return None
        return found, tuple(i for i, message in enumerate(found) if message["role"] == "assistant")
    prompt = _list_of_messages(value.get("prompt"), "user")
    completion = _list_of_messages(value.get("completion"), "assistant")
    if not prompt or not completion:
        return None
    whole = (*prompt, *completion)
    answers = tuple(i for i in range(len(prompt), len(whole)) if whole[i]["role"] == "assistant")
    return whole, answers


def _list_of_messages(value: Any, role: str) -> tuple[Mapping[str, Any], ...] | None:
    """Messages as chat templates take them, a string being one of `role`; None where it is neither."""
    found = [{"role": role, "content": value}] if isinstance(value, str) else value
    if not isinstance(found, list) or not found:
        return None
    for message in found:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            return None
    return tuple(found)
