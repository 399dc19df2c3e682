"""Files as bytes, gzip, Zstandard, xz and bzip2 unpacked on the way, and never more of them than was agreed."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

import zstandard

from llmnas.errors import UserError
from llmnas.files.opening import open_regular

MOST_TIMES = 200
"""How many times its size a packed file may unpack to; text packs 3 to 10 times, repeated pages 50."""
FREE = 1 << 26  # bytes that any packed file may unpack to
PACKED = (".gz", ".zst", ".xz", ".bz2")
"""Ends of the names of packed files."""
_XZ_MEMORY = 1 << 27  # bytes that a dictionary of xz may take; `xz -9` takes half of that
_PIECE = 1 << 11  # packed bytes unpacked at once: 64 MiB at most, since Zstandard packs 32,768 times


def open_unpacked(path: Path) -> IO[bytes]:
    """The content of a regular file; of one whose name ends as `PACKED` says the unpacked one.

    The stream raises `UserError` for a damaged file, one that cannot be read, and one that unpacks to more than
    `MOST_TIMES` its size (and `FREE`).
    """
    stream = open_regular(path)
    unpack = _UNPACK.get(path.suffix.lower())
    if unpack is None:
        return io.BufferedReader(_Guarded(stream, path, None))
    most = max(FREE, MOST_TIMES * path.stat().st_size)
    return io.BufferedReader(_Guarded(unpack(stream), path, most), 1 << 16)


class _Guarded(io.RawIOBase):
    """A source whose every fault is a `UserError` that names the file, and which gives `most` bytes at most."""

    def __init__(self, source: IO[bytes] | io.RawIOBase | gzip.GzipFile, path: Path, most: int | None) -> None:
        self._source = source
        self._path = path
        self._most = most
        self._given = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def close(self) -> None:
        """Close the source too."""
        self._source.close()
        super().close()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer; 0 at the end."""
        try:
            count = self._source.readinto(buffer) or 0  # type: ignore[union-attr]
        except (zlib.error, zstandard.ZstdError, lzma.LZMAError, _DamagedError, EOFError, gzip.BadGzipFile) as error:
            raise UserError(f"{self._path}: damaged: does not unpack ({error})") from None
        except OSError as error:
            raise UserError(f"{self._path}: cannot be read ({error.strerror or error})") from None
        self._given += count
        if self._most is not None and self._given > self._most:
            raise UserError(
                f"{self._path}: unpacks to more than {self._most:,} bytes, {MOST_TIMES} times its size; "
                "unpack it first if that is meant"
            )
        return count


class _DamagedError(Exception):
    """Data that does not unpack, where the library says it by the error of a file that cannot be read."""


class _Streams(io.RawIOBase):
    """Reads streams of xz or bzip2, one after the other, as much at once as is asked for."""

    def __init__(self, source: IO[bytes], begin: Callable[[], lzma.LZMADecompressor | bz2.BZ2Decompressor]) -> None:
        self._source, self._begin = source, begin
        self._stream, self._started = begin(), False

    def readable(self) -> bool:
        """Yes."""
        return True

    def close(self) -> None:
        """Close the file too."""
        self._source.close()
        super().close()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer as far as one piece's data goes; 0 at the end."""
        while True:
            packed = b""
            if self._stream.eof:
                packed = self._stream.unused_data
                self._stream, self._started = self._begin(), False
            if not packed and self._stream.needs_input:
                packed = self._source.read(_PIECE)
                if not packed:
                    if self._started:
                        raise EOFError("the file ends inside a stream")
                    return 0
            if not self._started:
                packed = packed.lstrip(b"\0")  # between two streams of xz there may be zeros
            if not packed and not self._started:
                continue
            self._started = True
            try:
                data = self._stream.decompress(packed, len(buffer))
            except OSError as error:  # of bzip2
                raise _DamagedError(error) from None
            if data:
                buffer[: len(data)] = data
                return len(data)


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
        """Fill the buffer as far as one piece's data goes; 0 at the end."""
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


def _xz(source: IO[bytes]) -> _Streams:
    return _Streams(source, lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY))


def _bzip2(source: IO[bytes]) -> _Streams:
    return _Streams(source, bz2.BZ2Decompressor)


def _gzip(source: IO[bytes]) -> gzip.GzipFile:
    return gzip.GzipFile(fileobj=source)


_UNPACK: dict[str, Callable[[IO[bytes]], io.RawIOBase | gzip.GzipFile]] = {
    ".gz": _gzip, ".zst": _Zstandard, ".xz": _xz, ".bz2": _bzip2,
}  # fmt: skip
