"""Files as bytes, gzip and Zstandard unpacked on the way, and never more of them than was agreed."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import IO

import zstandard

from llmnas.errors import UserError
from llmnas.files.opening import open_regular

MOST_TIMES = 200
"""How many times its size a packed file may unpack to; text packs 3 to 10 times, repeated pages 50."""
FREE = 1 << 26  # bytes that any packed file may unpack to
_PIECE = 1 << 11  # packed bytes unpacked at once: 64 MiB at most, since Zstandard packs 32,768 times


def open_unpacked(path: Path) -> IO[bytes]:
    """The content of a regular file; of `.gz` and `.zst` the unpacked one.

    The stream raises `UserError` for a damaged file, one that cannot be read, and one that unpacks to more than
    `MOST_TIMES` its size (and `FREE`).
    """
    stream = open_regular(path)
    suffix = path.suffix.lower()
    if suffix not in {".gz", ".zst"}:
        return io.BufferedReader(_Guarded(stream, path, None))
    most = max(FREE, MOST_TIMES * path.stat().st_size)
    unpacked = gzip.GzipFile(fileobj=stream) if suffix == ".gz" else _Zstandard(stream)
    return io.BufferedReader(_Guarded(unpacked, path, most), 1 << 16)


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
        except (zlib.error, zstandard.ZstdError, EOFError, gzip.BadGzipFile) as error:
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
