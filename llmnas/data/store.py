"""A token store: a folder with a tokenizer and the tokens of a corpus, apart from any run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel as Model
from pydantic import ConfigDict, NonNegativeInt

from llmnas.data.plan import Settings
from llmnas.data.shards import ShardInfo
from llmnas.data.split import SIDES, Side
from llmnas.data.tokens import TokenFile, TokenInfo, write_info
from llmnas.errors import UserError
from llmnas.files import read_as, write_json

FILE = "store.json"


class StoreInfo(Model):
    """What `store.json` says; it is written last, so a store that has it is whole.

    `passed_over`: files of other kinds; `bad`, `blank` and `repeated`: rows that are left out, the first bad ones
    `listed`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    llmnas_store: Literal[1] = 1
    source: str
    settings: Settings
    tokenizer_sha256: str
    vocab_size: NonNegativeInt
    eos_id: NonNegativeInt
    files: NonNegativeInt
    documents: dict[Side, NonNegativeInt]
    tokens: dict[Side, NonNegativeInt]
    bad: NonNegativeInt
    blank: NonNegativeInt
    repeated: NonNegativeInt
    passed_over: tuple[str, ...]
    listed: tuple[str, ...]
    key: str | None = None  # of one that a run made: what its tokens depend on, the state of its files too


@dataclass(frozen=True)
class Store:
    """An opened store."""

    path: Path
    info: StoreInfo

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read what a store says of itself.

        Raises:
            UserError: none there, one that is not finished, or a damaged description.
        """
        if not (path / FILE).is_file():
            why = (
                "is not finished; start its `llmnas prepare` again" if (path / "work").is_dir() else "is no token store"
            )
            raise UserError(f"{path}: {why} (no {FILE} in it); make one with `llmnas prepare SOURCE --out {path}`")
        return cls(path, read_as(path / FILE, StoreInfo))

    def tokens(self, side: Side) -> TokenFile:
        """The tokens of a side; `UserError` where the store has none, or they are not what was written."""
        if not self.info.documents.get(side):
            raise UserError(f"{self.path}: has no {side} text; prepare it with --validation above 0 and below 1")
        found = TokenFile.open(self.path / f"{side}.bin")
        if found.info.tokens != self.info.tokens[side]:
            raise UserError(f"{self.path}: {side}.json and {FILE} are of two versions of it; start its prepare again")
        return found


def joined(shards: Sequence[tuple[str, ShardInfo]], side: Side) -> TokenInfo | None:
    """The description of all shards of a side as one; None where it has no document.

    Args:
        shards: (name, what is in it) in their order.
        side: which.
    """
    found = [(name, info) for name, shard in shards if (info := shard.of(side)) is not None]
    if not found:
        return None
    files = []
    for name, info in found:
        for number, shard in enumerate(info.shards):
            end = f".{number}.bin" if number else ".bin"
            files.append(shard.model_copy(update={"name": f"{side}-{name}{end}"}))
    first = found[0][1]
    return first.model_copy(
        update={
            "tokens": sum(info.tokens for _, info in found),
            "documents": sum(info.documents for _, info in found),
            "text_bytes": sum(info.text_bytes for _, info in found),
            "shards": tuple(files),
        }
    )


def write_store(path: Path, info: StoreInfo, sides: dict[Side, TokenInfo]) -> None:
    """Describe a store whose shards are all there, and delete what is of no use any more: shards of before."""
    for side in SIDES:
        if side in sides:
            write_info(path / f"{side}.bin", sides[side])
        else:
            (path / f"{side}.json").unlink(missing_ok=True)
    write_json(path / FILE, info.model_dump(mode="json"))
    named = {shard.name for found in sides.values() for shard in found.shards}
    for side in SIDES:
        for left in path.glob(f"{side}-*.bin"):
            if left.name not in named:
                left.unlink(missing_ok=True)
