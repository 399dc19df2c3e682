"""One file to documents: plain text, JSON lines and parquet; gzip and Zstandard; nothing is held but one document."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import zstandard

from llmnas.errors import UserError

KINDS = ".txt, .md, .jsonl, the same with .gz or .zst behind it, or .parquet"
_PLAIN = (".txt", ".md", ".jsonl")
_PACKED = (".gz", ".zst")
_PIECE = 1 << 16  # packed bytes unpacked at once


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
    try:
        with _opened(path) as stream:
            if kind == ".jsonl":
                for number, line in _lines(stream, path):
                    yield Document(f"{name}:{number}", _text_of(line, path, number))
            else:
                yield Document(name, _decoded(stream.read(), path, 0))
    except (zlib.error, zstandard.ZstdError, EOFError, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: damaged: does not unpack ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if len(suffixes) == 2 and suffixes[1] in _PACKED and suffixes[0] in _PLAIN:
        return suffixes[0]
    return suffixes[-1] if suffixes and suffixes[-1] not in _PACKED else ""


def _opened(path: Path) -> io.BufferedIOBase:
    if path.suffix.lower() == ".gz":
        return gzip.open(path)
    if path.suffix.lower() == ".zst":
        return io.BufferedReader(_Zstandard(path.open("rb")))
    return path.open("rb")


class _Zstandard(io.RawIOBase):
    """Reads all frames of a file, and notices a last one that is cut off, which the library's reader does not."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._started = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """Yes."""
        return True

    def close(self) -> None:
        """Close the file too."""
        self._source.close()
        super().close()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer as far as one frame's data goes; 0 at the end."""
        while not self._ready:
            if self._frame.eof:
                packed = self._frame.unused_data
                self._frame, self._started = zstandard.ZstdDecompressor().decompressobj(), False
            else:
                packed = b""
            packed = packed or self._source.read(_PIECE)
            if not packed:
                if self._started:
                    raise EOFError("the file ends inside a frame")
                return 0
            self._started = True
            self._ready = memoryview(self._frame.decompress(packed))
        taken = min(len(buffer), len(self._ready))
        buffer[:taken], self._ready = self._ready[:taken], self._ready[taken:]
        return taken


def _lines(stream: io.BufferedIOBase, path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines that are not blank. Only a newline byte ends one, never U+2028 inside a string."""
    place = 0
    for number, line in enumerate(stream, start=1):
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
        text = json.loads(line)["text"]
        text.encode()  # JSON can spell lone surrogates, which no UTF-8 file and no tokenizer can hold
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: line {number}: not JSON in UTF-8 ({error})") from None
    except (TypeError, KeyError, AttributeError):
        raise UserError(f'{path}: line {number}: must be a mapping with a string "text"') from None
    return str(text)
