"""Which input files make which shard of a token store, so that new text makes new shards and leaves the others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel as Model
from pydantic import ConfigDict, NonNegativeInt

from llmnas.data.corpus import Corpus
from llmnas.data.duplicates import Duplicates
from llmnas.errors import UserError
from llmnas.files import as_kind, read_json, write_text

GROUP_BYTES = 1 << 26
"""Input bytes that make a shard; a larger file makes one by itself."""

MOST_PLAN = 1 << 30
"""Bytes of a plan, about a hundred for each file."""


class _Strict(Model):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(_Strict):
    """What a store's tokens depend on besides the text.

    `validation`: share of documents held out; `tokenizer`: what gave it, None where it is trained with `vocab_size`;
    `given_sha256`: of the file that gave it, None also in stores made before it was noted.
    """

    text_field: str
    bad_rows: NonNegativeInt
    duplicates: Duplicates
    validation: float
    vocab_size: int
    tokenizer: str | None
    given_sha256: str | None = None


class Source(_Strict):
    """An input file as it was when it was read."""

    name: str
    bytes: NonNegativeInt
    changed: int  # nanoseconds


class Group(_Strict):
    """Input files that make one shard."""

    number: NonNegativeInt
    files: tuple[Source, ...]

    @property
    def bytes(self) -> int:
        """Of its files."""
        return sum(file.bytes for file in self.files)

    def key(self, settings: Settings) -> str:
        """Stands for what reading it gives; eight hex digits after its number."""
        values = [settings.text_field, settings.duplicates, [file.model_dump() for file in self.files]]
        return f"{self.number:05}-{short_hash(values)}"


class Plan(_Strict):
    """All groups of a store, in the order of their documents."""

    llmnas_store: Literal[1] = 1
    source: str
    settings: Settings
    groups: tuple[Group, ...]


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan; `UserError` before that for one that could not be read back."""
    text = plan.model_dump_json()
    if len(text.encode()) > MOST_PLAN:
        files = sum(len(group.files) for group in plan.groups)
        raise UserError(
            f"{plan.source}: the list of its {files:,} files has more than {MOST_PLAN:,} bytes; write many texts "
            "into one file, as .jsonl with one a line"
        )
    write_text(path, f"{text}\n")


def read_plan(path: Path) -> Plan:
    """A plan that was written; `UserError` for one that is damaged."""
    return as_kind(read_json(path, MOST_PLAN), Plan, path)


def short_hash(value: object) -> str:
    """Eight hex digits of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def sources_of(corpus: Corpus) -> dict[str, Source]:
    """The files of a corpus as they are now, by name."""
    found = {}
    for name, path in corpus.files:
        about = path.stat()
        found[name] = Source(name=name, bytes=about.st_size, changed=about.st_mtime_ns)
    return found


def grouped(known: Sequence[Group], sources: Mapping[str, Source], group_bytes: int = GROUP_BYTES) -> tuple[Group, ...]:
    """Groups of all files: known ones keep their number and what is left of their files, new files make new groups."""
    groups, taken = [], set()
    for group in known:
        files = tuple(sources[file.name] for file in group.files if file.name in sources)
        taken |= {file.name for file in files}
        if files:
            groups.append(Group(number=group.number, files=files))
    number = max((group.number for group in known), default=-1) + 1
    waiting: list[Source] = []
    size = 0  # of those that wait
    new = [sources[name] for name in sorted(sources) if name not in taken]
    for file in new:
        if waiting and size + file.bytes > group_bytes:
            groups.append(Group(number=number, files=tuple(waiting)))
            number, waiting, size = number + 1, [], 0
        waiting.append(file)
        size += file.bytes
    if waiting:
        groups.append(Group(number=number, files=tuple(waiting)))
    return tuple(groups)


def changed_groups(before: Sequence[Group], after: Sequence[Group]) -> tuple[int, int]:
    """(groups made of new files, groups of which a file changed or went)."""
    old, new = ({group.number: group for group in groups} for groups in (before, after))
    return len(new.keys() - old.keys()), sum(new.get(number) != group for number, group in old.items())


def names(folder: Path, key: str) -> dict[str, Path]:
    """Where the scan of a group keeps what it found."""
    return {kind: folder / f"{key}.{kind}" for kind in ("digests", "exact", "sample", "repeated", "json")}
