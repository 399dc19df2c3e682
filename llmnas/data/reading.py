"""One file to documents: plain text, JSON lines and parquet; gzip and Zstandard; nothing is held but one document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

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
                yield _document(f"{name}:{number}", line, path, number)
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


def _document(name: str, line: str, path: Path, number: int) -> Document:
    """A line of JSON: `text`, `messages`, or `prompt` and `completion` (texts, or lists of messages)."""
    try:
        value = parse_json(line)
        line.encode()
    except ValueError as error:
        raise UserError(f"{path}: line {number}: not JSON in UTF-8 ({error})") from None
    text = value.get("text") if isinstance(value, dict) else None
    try:
        if isinstance(text, str):
            text.encode()  # JSON can spell lone surrogates, which no UTF-8 file and no tokenizer can hold
            return Document(name, text)
        found = _messages(value) if isinstance(value, dict) else None
        if found is not None:
            words = "\n".join(str(message["content"]) for message in found[0])
            words.encode()
            return Document(name, words, *found)
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: line {number}: not JSON in UTF-8 ({error})") from None
    raise UserError(
        f'{path}: line {number}: must be a mapping with a string "text", or a conversation: "messages" (a list of '
        '{"role": ..., "content": ...}, both strings), or "prompt" and "completion" (strings or such lists)'
    )


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
