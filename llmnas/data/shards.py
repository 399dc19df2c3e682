"""The two passes over a group of input files: what is in it, then its tokens. Both are jobs of worker processes."""

from __future__ import annotations

import contextlib
import functools
import json
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from pydantic import BaseModel as Model
from pydantic import ConfigDict, NonNegativeInt
from tokenizers import Tokenizer

from llmnas.data.duplicates import digest, mapped, normal_digest
from llmnas.data.encoding import Encoder
from llmnas.data.plan import Group, Settings, Source, names
from llmnas.data.pretrained import ModelTokenizer
from llmnas.data.reading import read_file
from llmnas.data.rows import BadRows, Document
from llmnas.data.split import SIDES, Side
from llmnas.data.tokenizer import sample_pieces
from llmnas.data.tokens import SHARD_TOKENS, TokenInfo, TokenWriter
from llmnas.errors import RunError
from llmnas.files import atomic_open, open_regular, parse_json, read_text, write_json
from llmnas.files.tokenizer_files import MOST_TOKENIZER

_HELD_OUT = 1 << 64


class Scan(Model):
    """What a group holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    documents: NonNegativeInt
    text_bytes: NonNegativeInt
    blank: NonNegativeInt  # documents without text, which are left out
    bad: NonNegativeInt
    listed: tuple[str, ...]  # the first bad rows


class ShardInfo(Model):
    """The token files of a group; none for a side without documents."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: TokenInfo | None = None
    validation: TokenInfo | None = None

    def of(self, side: Side) -> TokenInfo | None:
        """Those of a side."""
        return self.train if side == "train" else self.validation


@dataclass(frozen=True)
class Piece:
    """A group of a store, with all that a worker has to know of both.

    Attributes:
        store: folder of the store.
        root: folder of the input files.
        share: a tokenizer is to learn from one of so many pieces of text; 0: it is there already.
        eos_id, prefix, model: of the tokenizer; `model` where it came with a pretrained one.
        shard: name of its tokens, once it is known.
    """

    store: Path
    root: Path
    group: Group
    settings: Settings
    share: int = 0
    eos_id: int = 0
    prefix: tuple[int, ...] = ()
    model: bool = False
    shard: str = ""

    @property
    def files(self) -> dict[str, Path]:
        """Where its scan is."""
        return names(self.store / "work", self.group.key(self.settings))

    @property
    def described(self) -> Path:
        """What describes its tokens."""
        return self.store / "work" / f"{self.shard}.shard.json"


def scan(piece: Piece) -> Scan:
    """Read a group: digests of its documents, and text that a tokenizer learns from. The description comes last.

    Raises:
        UserError: as `read_file` does.
    """
    files, settings = piece.files, piece.settings
    bad = BadRows(settings.bad_rows)
    documents = text_bytes = blank = 0
    with contextlib.ExitStack() as stack:
        digests = stack.enter_context(atomic_open(files["digests"]))
        exact = stack.enter_context(atomic_open(files["exact"])) if settings.duplicates == "exact" else None
        sample = stack.enter_context(atomic_open(files["sample"])) if piece.share else None
        for document in _documents(piece, bad):
            if not document.text.strip():
                blank += 1
                continue
            key = normal_digest(document.text)
            digests.write(struct.pack("<Q", key))
            if exact is not None:
                exact.write(struct.pack("<Q", digest(document.text)))
            if sample is not None and side_of(key, settings.validation) == "train":
                _write_sample(sample, documents, document.text, piece.share)
            documents += 1
            text_bytes += len(document.text.encode())
    found = Scan(documents=documents, text_bytes=text_bytes, blank=blank, bad=bad.count, listed=tuple(bad.listed))
    write_json(files["json"], found.model_dump(mode="json"))
    return found


def encode(piece: Piece) -> ShardInfo:
    """Write the token files of a group, without what is marked as repeated; the description comes last.

    Raises:
        UserError: as `read_file` and `Encoder.encode` do.
        RunError: a file changed since it was scanned.
    """
    settings = piece.settings
    keys, repeated = mapped(piece.files["digests"], np.dtype("<u8")), _repeated(piece)
    waiting: deque[tuple[Side, int]] = deque()  # side and bytes of the documents that are being encoded
    text_bytes: dict[Side, int] = dict.fromkeys(SIDES, 0)
    model, tokenizer = _tokenizer(piece.store, piece.eos_id, piece.prefix, piece.model)
    with contextlib.ExitStack() as stack:
        writers = {
            side: TokenWriter(
                piece.store / f"{side}-{piece.shard}.bin", settings.vocab_size, piece.eos_id, SHARD_TOKENS
            )
            for side in SIDES
        }
        for writer in writers.values():
            stack.enter_context(writer.files)

        def kept() -> Iterator[Document]:
            number = -1
            for document in _documents(piece, BadRows(settings.bad_rows)):
                if not document.text.strip():
                    continue
                number += 1
                if number >= len(keys):
                    raise _changed(piece)
                if not len(repeated) or not repeated[number]:
                    waiting.append((side_of(int(keys[number]), settings.validation), len(document.text.encode())))
                    yield document
            if number + 1 != len(keys):
                raise _changed(piece)

        for encoded in Encoder(tokenizer, model, completions=False).encode(kept()):
            side, size = waiting.popleft()
            text_bytes[side] += size
            writers[side].add(encoded.ids)
        for writer in writers.values():
            writer.finish_shard()
        _require_unchanged(piece)
    found = ShardInfo(**{side: w.info(text_bytes[side]) for side, w in writers.items() if w.documents})
    write_json(piece.described, found.model_dump(mode="json", exclude_none=True))
    return found


def side_of(key: int, validation: float) -> Side:
    """Where a document belongs, by its `normal_digest` alone: new text moves none."""
    return "validation" if key < validation * _HELD_OUT else "train"


def sampled(piece: Piece) -> Iterator[str]:
    """What `scan` wrote for a tokenizer to learn from, without documents that are marked as repeated."""
    repeated = _repeated(piece)
    with open_regular(piece.files["sample"]) as stream:
        for line in stream:
            number, text = parse_json(line)
            if not len(repeated) or not repeated[number]:
                yield text


def _write_sample(stream: IO[bytes], number: int, text: str, share: int) -> None:
    for part in sample_pieces(text, share):
        stream.write(json.dumps([number, part]).encode() + b"\n")


def _repeated(piece: Piece) -> np.ndarray:
    """A byte a document, 1 where it is left out; nothing where all are kept."""
    if piece.settings.duplicates == "keep":
        return np.zeros(0, np.uint8)
    return mapped(piece.files["repeated"], np.uint8)


def _documents(piece: Piece, bad: BadRows) -> Iterator[Document]:
    for file in piece.group.files:
        yield from read_file(file.name, piece.root / file.name, piece.settings.text_field, bad)


def _require_unchanged(piece: Piece) -> None:
    for file in piece.group.files:
        about = (piece.root / file.name).stat()
        if Source(name=file.name, bytes=about.st_size, changed=about.st_mtime_ns) != file:
            raise _changed(piece)


def _changed(piece: Piece) -> RunError:
    names = [file.name for file in piece.group.files]
    return RunError(f"{piece.root}: {', '.join(names[:3])} changed while the store was made; start prepare again")


@functools.lru_cache(maxsize=1)
def _tokenizer(
    store: Path, eos_id: int, prefix: tuple[int, ...], model: bool
) -> tuple[ModelTokenizer | None, Tokenizer]:
    """The store's tokenizer, which was tried when it was put there, and how a pretrained model uses it."""
    path = store / "tokenizer.json"
    tokenizer = Tokenizer.from_str(read_text(path, MOST_TOKENIZER))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return (ModelTokenizer(path, tokenizer, eos_id, prefix) if model else None), tokenizer
