"""Token files: flat integers on disk, in shards, read through memory maps, never whole.

Letters: T tokens in all shards.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal, Protocol, Self

import numpy as np
from pydantic import BaseModel as Model
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from llmnas.errors import UserError, explain
from llmnas.files import BLOCK, Digest, Seal, atomic_open, inside, read_json, require_written, write_json

AGAIN = "delete data/ and run prepare again"
SHARD_TOKENS = 1 << 31
# Little-endian on every machine.
_LAYOUT: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


class Tokens(Protocol):
    """`[T]` token ids, read where they are indexed: an array, a memory map, or `Joined`."""

    def __len__(self) -> int:
        """T."""
        ...

    def __getitem__(self, index: Any, /) -> Any:
        """Ids at an array of places, in its shape."""
        ...


class Shard(Model):
    """One file of tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    tokens: PositiveInt
    file_bytes: PositiveInt
    sha256: str
    blocks: tuple[str, ...] = Field(default=(), strict=False)  # SHA-256 of every `BLOCK`; files made earlier have none
    name: str | None = None  # of its file, beside the description; None where it follows from its number

    @model_validator(mode="after")
    def _every_block(self) -> Self:
        wanted = -(-self.file_bytes // BLOCK)
        if self.blocks and len(self.blocks) != wanted:
            raise ValueError(f"{len(self.blocks)} hashes of blocks, {self.file_bytes} bytes have {wanted}")
        return self


class TokenInfo(Model):
    """What the JSON file beside the token files says about them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["uint16", "uint32"]
    tokens: PositiveInt  # T, the end of each document included
    documents: PositiveInt
    text_bytes: NonNegativeInt  # UTF-8 bytes of the text: what bits per byte are counted against
    vocab_size: PositiveInt
    eos_id: NonNegativeInt = 0  # ends each document
    shards: tuple[Shard, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for shard in self.shards:
            if shard.file_bytes != shard.tokens * _LAYOUT[self.dtype].itemsize:
                raise ValueError(f"{shard.tokens} tokens of {self.dtype} are not {shard.file_bytes} bytes")
        if (total := sum(shard.tokens for shard in self.shards)) != self.tokens:
            raise ValueError(f"the shards hold {total} tokens, not {self.tokens}")
        return self


@dataclass(frozen=True)
class TokenFile:
    """Files of tokens, compared where they are read: documents one after the other, each with its end of text."""

    path: Path
    info: TokenInfo
    parts: tuple[TokenFile, ...] = ()  # of which it is made, where it is several

    @classmethod
    def of_several(cls, files: Sequence[TokenFile]) -> TokenFile:
        """Files of one vocabulary, one after the other, as one."""
        if len(files) == 1:
            return files[0]
        first, infos = files[0], [file.info for file in files]
        total = {key: sum(getattr(info, key) for info in infos) for key in ("tokens", "documents", "text_bytes")}
        shards = tuple(shard for info in infos for shard in info.shards)
        return cls(first.path, first.info.model_copy(update={**total, "shards": shards}), tuple(files))

    @cached_property
    def tokens(self) -> Tokens:
        """All tokens, `[T]` uint16 or uint32, read-only memory maps."""
        maps = [
            CheckedMap(file, _LAYOUT[self.info.dtype], shard.blocks)
            for part in self.parts or (self,)
            for file, shard in part._files()
        ]
        return maps[0] if len(maps) == 1 else Joined(maps)

    def verify(self) -> None:
        """Read every shard whole; raises as `open` does, of any byte."""
        for part in self.parts:
            part.verify()
        for file, shard in () if self.parts else self._files():
            require_written(file, shard.file_bytes, shard.sha256, AGAIN)

    def _files(self) -> list[tuple[Path, Shard]]:
        """Every shard with its file."""
        return [
            (_shard(self.path, number) if shard.name is None else inside(self.path.parent, shard.name), shard)
            for number, shard in enumerate(self.info.shards)
        ]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open what `write_tokens` wrote, after comparing every shard's size with what was written.

        Content is compared where it is read (`CheckedMap`); a shard made before blocks had hashes is read whole here.

        Raises:
            UserError: a missing, truncated or changed file; it names the file.
        """
        sidecar = _sidecar(path)
        if not sidecar.is_file():
            raise UserError(f"{sidecar}: no such file; {AGAIN}")
        try:
            info = TokenInfo.model_validate(read_json(sidecar))
        except ValidationError as error:
            raise explain(str(sidecar), error) from None
        found = cls(path, info)
        for file, shard in found._files():
            if not file.is_file():
                raise UserError(f"{file}: no such file; {AGAIN}")
            size = file.stat().st_size
            if size != shard.file_bytes:
                raise UserError(f"{file}: damaged: {size} bytes instead of {shard.file_bytes}; {AGAIN}")
            if not shard.blocks:
                require_written(file, shard.file_bytes, shard.sha256, AGAIN)
        return found


class CheckedMap:
    """A memory-mapped file of which every block is compared with its hash before it is first read.

    Args:
        path: the file.
        dtype: of its tokens.
        blocks: SHA-256 of every `BLOCK` bytes; none where the file has been compared already.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], blocks: Sequence[str]) -> None:
        self.path, self.dtype = path, dtype
        self._map = np.memmap(path, dtype=dtype, mode="r")
        self._bytes = self._map.view(np.uint8).data
        self._blocks = blocks
        self._open = np.ones(len(blocks), dtype=bool)  # not compared yet

    def __len__(self) -> int:
        """Tokens of the file."""
        return len(self._map)

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """Ids at `places` (any shape, 0 .. T - 1), in that shape; `UserError` where a block is not what was written."""
        if self._open.any():
            touched = places.ravel() * self.dtype.itemsize // BLOCK
            for block in np.unique(touched[self._open[touched]]):
                self._compare(int(block))
        found: np.ndarray = self._map[places]
        return found

    def _compare(self, block: int) -> None:
        first = block * BLOCK
        data = self._bytes[first : first + BLOCK]
        if hashlib.sha256(data).hexdigest() != self._blocks[block]:
            raise UserError(
                f"{self.path}: damaged: bytes {first:,} to {first + len(data):,} are not what was written "
                f"(SHA-256 differs); {AGAIN}"
            )
        self._open[block] = False


class Joined:
    """Token files one after the other, indexed as one, without a copy of any."""

    def __init__(self, parts: Sequence[CheckedMap]) -> None:
        self.parts = tuple(parts)
        self.starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        """Tokens of all parts."""
        return int(self.starts[-1])

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """Ids at `places` (any shape, 0 .. T - 1), in that shape."""
        found = np.empty(places.shape, dtype=self.parts[0].dtype)
        owners = np.searchsorted(self.starts, places, side="right") - 1
        for number in np.unique(owners):
            inside = owners == number
            found[inside] = self.parts[number][places[inside] - self.starts[number]]
        return found


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")


def _shard(path: Path, number: int) -> Path:
    """`train.bin`, `train.1.bin`, `train.2.bin`, ..."""
    return path if number == 0 else path.with_suffix(f".{number}{path.suffix}")


class TokenWriter:
    """Takes documents one by one and writes them to shards; made by `token_writer`."""

    def __init__(self, path: Path, vocab_size: int, eos_id: int, shard_tokens: int) -> None:
        self.documents = self.tokens = 0
        self.shards: list[Shard] = []
        self.dtype: Literal["uint16", "uint32"] = "uint16" if vocab_size <= 1 << 16 else "uint32"
        self._path, self._vocab_size, self._eos_id, self._shard_tokens = path, vocab_size, eos_id, shard_tokens
        self.files = contextlib.ExitStack()
        self._stream: IO[bytes] | None = None
        self._digest = Digest(blocks=True)
        self._in_shard = 0

    def add(self, ids: Sequence[int]) -> None:
        """Append a document and its end of text; a shard ends with a document.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        row = np.append(np.asarray(ids, dtype=np.int64), self._eos_id)
        if row.min() < 0 or row.max() >= self._vocab_size:
            raise ValueError(f"document {self.documents}: a token id outside the vocabulary of {self._vocab_size}")
        if self._stream is None:
            self._stream = self.files.enter_context(atomic_open(_shard(self._path, len(self.shards))))
        data = row.astype(_LAYOUT[self.dtype]).tobytes()
        self._digest.update(data)
        self._stream.write(data)
        self.documents += 1
        self.tokens += len(row)
        self._in_shard += len(row)
        if self._in_shard >= self._shard_tokens:
            self.finish_shard()

    def finish_shard(self) -> None:
        """Note what the open shard holds; the next document begins another."""
        if self._stream is None:
            return
        size = self._in_shard * _LAYOUT[self.dtype].itemsize
        digest, blocks = self._digest.hexdigest(), self._digest.blocks()
        self.shards.append(Shard(tokens=self._in_shard, file_bytes=size, sha256=digest, blocks=blocks))
        self._stream, self._digest, self._in_shard = None, Digest(blocks=True), 0

    def info(self, text_bytes: int) -> TokenInfo:
        """What was written, when the last shard is finished."""
        return TokenInfo(
            dtype=self.dtype,
            tokens=self.tokens,
            documents=self.documents,
            text_bytes=text_bytes,
            vocab_size=self._vocab_size,
            eos_id=self._eos_id,
            shards=tuple(self.shards),
        )


@contextlib.contextmanager
def token_writer(
    path: Path,
    vocab_size: int,
    eos_id: int,
    text_bytes: int,
    shard_tokens: int = SHARD_TOKENS,
    seal: Seal | None = None,
) -> Iterator[TokenWriter]:
    """Write documents one after the other, each followed by `eos_id`, holding one document at a time.

    Files take their names at the end, the JSON file last: without it, or with that of other token files, `open`
    refuses.

    Args:
        path: the first token file (.bin); its description lies beside it (.json).
        vocab_size: decides the width: uint16 up to 65536, else uint32.
        eos_id: the end of text.
        text_bytes: UTF-8 bytes of all documents together.
        shard_tokens: a file that has reached so many tokens is full.
        seal: of the description, which has the hashes of the token files; as in `llmnas.files.hashed_open`.

    Raises:
        UserError: no documents. Nothing is left of the files then, and older ones stay.
    """
    writer = TokenWriter(path, vocab_size, eos_id, shard_tokens)
    with writer.files:
        yield writer
        writer.finish_shard()
        if not writer.documents:
            raise UserError(f"{path}: no documents to write")
    write_info(path, writer.info(text_bytes), seal)


def write_info(path: Path, info: TokenInfo, seal: Seal | None = None) -> None:
    """Describe the token files that begin with `path`, in the JSON file beside them; `seal` as in `token_writer`."""
    write_json(_sidecar(path), info.model_dump(mode="json", exclude_none=True), seal)


def write_tokens(
    path: Path, documents_ids: Iterable[Sequence[int]], vocab_size: int, eos_id: int, text_bytes: int
) -> TokenFile:
    """All documents (ids below `vocab_size`, without end of text) into a file: see `token_writer`."""
    with token_writer(path, vocab_size, eos_id, text_bytes) as writer:
        for ids in documents_ids:
            writer.add(ids)
    return TokenFile(path, TokenInfo.model_validate(read_json(_sidecar(path))))
