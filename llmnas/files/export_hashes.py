"""What an exported folder says of its own files, and of the loss that its card tells: `hashes.json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel as Model
from pydantic import ConfigDict, NonNegativeInt, PositiveInt

from llmnas.errors import UserError
from llmnas.files.hashing import Written, content_hash, require_written, sha256
from llmnas.files.json_files import read_as
from llmnas.files.opening import inside
from llmnas.files.writing import write_json

HASHES = "hashes.json"
_REMEDY = "export it again"


class Measured(Model):
    """How the loss of the card was measured.

    Attributes:
        val_loss: in nats a token, the mean over all windows.
        seq_len: tokens of a window.
        windows: how many, evenly spread over the text.
        document_end: the token that attention did not go beyond; None where it may.
        tokens: SHA-256 of every shard of the text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    val_loss: float
    seq_len: PositiveInt
    windows: PositiveInt
    document_end: NonNegativeInt | None = None
    tokens: tuple[str, ...]


class _File(Model):
    model_config = ConfigDict(extra="forbid")

    bytes: NonNegativeInt
    sha256: str


class Hashes(Model):
    """Contents of `hashes.json`; `sha256` is that of everything else in it.

    Attributes:
        files: by name.
        made_of: SHA-256 of what the run made it of, by path in the run folder.
        measured: of one network; None for an elastic checkpoint, whose table is in its config.
    """

    model_config = ConfigDict(extra="forbid")

    files: dict[str, _File]
    made_of: dict[str, str] = {}
    measured: Measured | None = None
    sha256: str = ""

    def own_hash(self) -> str:
        """What `sha256` has to be."""
        return content_hash(self.model_dump(mode="json", exclude={"sha256"}))


def note(
    folder: Path, written: Iterable[Written] = (), made_of: Mapping[str, str] | None = None,
    measured: Measured | None = None,
) -> None:  # fmt: skip
    """Write `hashes.json` over the files of a folder; those `written` were hashed on the way."""
    known = {one.path.name: _File(bytes=one.bytes, sha256=one.sha256) for one in written}
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = {
        name: known.get(name) or _File(bytes=(folder / name).stat().st_size, sha256=sha256(folder / name))
        for name in names
        if name != HASHES
    }
    hashes = Hashes(files=files, made_of=dict(made_of or {}), measured=measured)
    hashes.sha256 = hashes.own_hash()
    write_json(folder / HASHES, hashes.model_dump(mode="json"))


def read_hashes(folder: Path) -> Hashes | None:
    """What the folder says of its files; None for an export made before they had hashes.

    Raises:
        UserError: `hashes.json` is damaged.
    """
    if not (folder / HASHES).exists():
        return None
    found = read_as(folder / HASHES, Hashes)
    if found.sha256 != found.own_hash():
        raise UserError(f"{folder / HASHES}: damaged: its content is not what was written; {_REMEDY}")
    return found


def damages(folder: Path, hashes: Hashes) -> dict[str, str]:
    """What is wrong, by the name of the file."""
    found = {}
    for name, file in hashes.files.items():
        try:
            require_written(inside(folder, name), file.bytes, file.sha256, _REMEDY)
        except UserError as error:
            found[name] = str(error)
    return found


def require_whole(folder: Path) -> None:
    """`UserError` where a file of an export is not what was written; nothing can be said of one without hashes."""
    hashes = read_hashes(folder)
    for damage in damages(folder, hashes).values() if hashes else ():
        raise UserError(damage)
