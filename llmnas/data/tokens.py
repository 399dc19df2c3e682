"""Token files: flat integers on disk, read through a memory map, never whole.

Letters: T tokens in a file, S tokens in a sequence, B sequences in a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, final

import numpy as np
from pydantic import BaseModel as Model
from pydantic import ConfigDict, NonNegativeInt, PositiveInt, ValidationError, model_validator

from llmnas.errors import UserError, explain
from llmnas.files import atomic_open, read_json, sha256, write_json
from llmnas.rng import generator

AGAIN = "delete data/ and run prepare again"
# Little-endian on every machine.
_LAYOUT: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


class TokenInfo(Model):
    """What the JSON file beside a token file says about it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    dtype: Literal["uint16", "uint32"]
    tokens: PositiveInt  # T, the end of each document included
    documents: PositiveInt
    text_bytes: NonNegativeInt  # UTF-8 bytes of the text: what bits per byte are counted against
    vocab_size: PositiveInt
    file_bytes: PositiveInt
    sha256: str

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.file_bytes != self.tokens * _LAYOUT[self.dtype].itemsize:
            raise ValueError(f"{self.tokens} tokens of {self.dtype} are not {self.file_bytes} bytes")
        return self


@dataclass(frozen=True)
class TokenFile:
    """A verified file of tokens: documents one after the other, each followed by the end of text."""

    path: Path
    info: TokenInfo

    @cached_property
    def tokens(self) -> np.ndarray:
        """Memory map of all tokens, `[T]` uint16 or uint32, read-only."""
        return np.memmap(self.path, dtype=_LAYOUT[self.info.dtype], mode="r")

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a file that `write_tokens` wrote, after comparing its size and SHA-256 with what was written.

        Raises:
            UserError: a missing, truncated or changed file; it names the file.
        """
        sidecar = _sidecar(path)
        if not (path.is_file() and sidecar.is_file()):
            raise UserError(f"{path if sidecar.is_file() else sidecar}: no such file; {AGAIN}")
        try:
            info = TokenInfo.model_validate(read_json(sidecar))
        except ValidationError as error:
            raise explain(str(sidecar), error) from None
        size = path.stat().st_size
        if size != info.file_bytes:
            raise UserError(f"{path}: damaged: {size} bytes instead of {info.file_bytes}; {AGAIN}")
        if sha256(path) != info.sha256:
            raise UserError(f"{path}: damaged: its content is not what was written (SHA-256 differs); {AGAIN}")
        return cls(path, info)


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")


def write_tokens(
    path: Path, documents_ids: Iterable[Sequence[int]], vocab_size: int, eos_id: int, text_bytes: int
) -> TokenFile:
    """Write documents one after the other, each followed by `eos_id`, holding one document at a time.

    The JSON file is written last: without it, or with that of another token file, `open` refuses.

    Args:
        path: the token file (.bin); its description lies beside it (.json).
        documents_ids: token ids of each document, all below `vocab_size`, without end of text.
        vocab_size: decides the width: uint16 up to 65536, else uint32.
        eos_id: the end of text.
        text_bytes: UTF-8 bytes of all documents together.

    Raises:
        UserError: no documents.
        ValueError: an id outside the vocabulary. Nothing is left of the file then, and an older one stays.
    """
    dtype: Literal["uint16", "uint32"] = "uint16" if vocab_size <= 1 << 16 else "uint32"
    digest = hashlib.sha256()
    documents = tokens = 0
    with atomic_open(path) as stream:
        for ids in documents_ids:
            row = np.append(np.asarray(ids, dtype=np.int64), eos_id)
            if row.min() < 0 or row.max() >= vocab_size:
                raise ValueError(f"document {documents}: a token id outside the vocabulary of {vocab_size}")
            data = row.astype(_LAYOUT[dtype]).tobytes()
            digest.update(data)
            stream.write(data)
            documents += 1
            tokens += len(row)
        if not documents:
            raise UserError(f"{path}: no documents to write")
    info = TokenInfo(
        dtype=dtype,
        tokens=tokens,
        documents=documents,
        text_bytes=text_bytes,
        vocab_size=vocab_size,
        file_bytes=tokens * _LAYOUT[dtype].itemsize,
        sha256=digest.hexdigest(),
    )
    write_json(_sidecar(path), info.model_dump())
    return TokenFile(path, info)


@final
class Sequences:
    """An endless stream of training sequences whose n-th one is a pure function of (seed, n).

    Epoch e = n // per_epoch cuts the tokens into windows of S, starting at an offset of its own, and takes them
    in an order of its own: every window once. A sequence is a window and the token after it, so inputs are
    `[:, :-1]` and targets `[:, 1:]`. Any rank or resumed run that knows n reads on from there; no state is saved.
    """

    def __init__(self, tokens: np.ndarray, seq: int, seed: int) -> None:
        """Look at `tokens`, `[T]`, in sequences of `seq` (S) targets.

        Raises:
            UserError: T < S + 1.
        """
        if len(tokens) < seq + 1:
            raise UserError(
                f"the corpus has {len(tokens)} tokens, fewer than one sequence of {seq} + 1; give more text"
            )
        self.tokens, self.seq, self.seed = tokens, seq, seed
        # As many windows as fit at any offset below S, so that every epoch is equally long (at least one).
        self.per_epoch = max(1, len(tokens) // seq - 1)
        self._current: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def batch(self, first: int, count: int) -> np.ndarray:
        """Sequences first .. first + count - 1 of the stream, `[B, S + 1]` int64."""
        epochs, places = np.divmod(np.arange(first, first + count), self.per_epoch)
        starts = np.empty(count, dtype=np.int64)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            starts[inside] = self._starts(int(epoch))[places[inside]]
        return self._read(starts)

    def fixed(self, count: int) -> np.ndarray:
        """Evenly spread windows for evaluation, always the same ones, none overlapping.

        Returns `[B, S + 1]` int64 with B = `count`, or all (T - 1) // S windows where there are fewer.
        """
        windows = (len(self.tokens) - 1) // self.seq
        count = min(count, windows)
        return self._read((2 * np.arange(count) + 1) * windows // (2 * count) * self.seq)

    def _starts(self, epoch: int) -> np.ndarray:
        """First token of each sequence of an epoch in its order, `[per_epoch]`; the latest epoch is remembered."""
        if self._current[0] != epoch:
            rng = generator(self.seed, "epoch", epoch)
            # Any offset at which the epoch still fits, so that no token is left out of every epoch.
            offset = rng.integers(len(self.tokens) - self.per_epoch * self.seq)
            self._current = (epoch, offset + self.seq * rng.permutation(self.per_epoch))
        return self._current[1]

    def _read(self, starts: np.ndarray) -> np.ndarray:
        """Copy the sequences that begin at `starts`, `[B]`, out of the memory map."""
        return np.asarray(self.tokens[starts[:, None] + np.arange(self.seq + 1)], dtype=np.int64)
