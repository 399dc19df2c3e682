"""The manifest of a run folder: when stages ended, with which versions, and what every file was when it was written.

A file is noted before it gets its name. A crash between the two leaves a note of what is not there yet, so a note keeps
the hash of the file that it replaces too.
"""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel as Model
from pydantic import ConfigDict, NonNegativeInt, ValidationError

from llmnas.errors import UserError, explain
from llmnas.files import Written, content_hash, read_json, require_written, sha256, write_json


class Noted(Model):
    """A file as it was written; `before`: the hash of what it replaces."""

    model_config = ConfigDict(extra="forbid")

    bytes: NonNegativeInt
    sha256: str
    before: str | None = None


class _Contents(Model):
    model_config = ConfigDict(extra="forbid")

    stages: dict[str, dict[str, Any]] = {}
    versions: dict[str, str] = {}
    files: dict[str, Noted] | None = None  # by path below the folder; a run made before there were notes has none
    sha256: str | None = None  # of everything else


class Ledger:
    """The manifest `path` and the files below its folder."""

    def __init__(self, path: Path) -> None:
        self.path, self._folder = path, path.parent

    def stages(self) -> dict[str, dict[str, Any]]:
        """What is noted of every stage that has ended; empty without a manifest; `UserError` where it is damaged."""
        return self._read().stages

    def files(self) -> dict[str, Noted] | None:
        """Every file that is noted, by its path below the folder; None in a run made before files were noted."""
        if not self.path.exists():
            return {}
        return self._read().files

    def ended(self, stage: str, facts: dict[str, Any]) -> None:
        """Note that a stage is done."""
        contents = self._read()
        contents.versions = {
            "python": platform.python_version(),
            **{name: version(name) for name in ("llmnas", "torch", "deepspeed", "transformers")},
        }
        contents.stages[stage] = {"ended": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **facts}
        self._write(contents)

    def seal(self, written: Written) -> None:
        """Note a file that is about to get its name."""
        contents, name = self._read(), self._name(written.path)
        old = (contents.files or {}).get(name)
        before = old.sha256 if old is not None and written.path.exists() and old.sha256 != written.sha256 else None
        noted = Noted(bytes=written.bytes, sha256=written.sha256, before=before)
        contents.files = {**(contents.files or {}), name: noted}
        self._write(contents)

    def forget(self, path: Path) -> None:
        """Drop the note of a file that is going to change."""
        if not self.path.exists():
            return
        contents = self._read()
        if contents.files and contents.files.pop(self._name(path), None) is not None:
            self._write(contents)

    def check(self, path: Path) -> Path:
        """The path, if its file is what was written, or nothing was noted of it.

        Raises:
            UserError: another size or content.
        """
        noted = (self.files() or {}).get(self._name(path))
        if noted is not None and path.exists():
            remedy = "delete it and start the stage that wrote it again with --resume"
            if noted.before is None or sha256(path) != noted.before:
                require_written(path, noted.bytes, noted.sha256, remedy)
        return path

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()

    def _read(self) -> _Contents:
        if not self.path.exists():
            return _Contents(files={})
        value = read_json(self.path)
        if not isinstance(value, dict) or "stages" not in value:
            raise UserError(f"{self.path}: damaged (no stages in it); delete it to have it made again")
        try:
            contents = _Contents.model_validate(value)
        except ValidationError as error:
            why = str(explain(str(self.path), error)).removeprefix(f"{self.path}: ")
            raise UserError(f"{self.path}: damaged ({why}); delete it to have it made again") from None
        if contents.sha256 not in (None, _own_hash(contents)):
            raise UserError(
                f"{self.path}: damaged: its content is not what was written (SHA-256 differs); delete it to have it "
                "made again"
            )
        return contents

    def _write(self, contents: _Contents) -> None:
        contents.sha256 = _own_hash(contents)
        write_json(self.path, contents.model_dump(exclude_none=True))


def _own_hash(contents: _Contents) -> str:
    return content_hash(contents.model_dump(exclude_none=True, exclude={"sha256"}))
