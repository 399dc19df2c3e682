"""Train and validation: whole documents, equal texts on one side; about 200 bytes of memory a document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from llmnas.data.duplicates import Duplicates, digest, normal_digest
from llmnas.data.rows import Document
from llmnas.errors import UserError
from llmnas.rng import generator

Side = Literal["train", "validation"]
SIDES: tuple[Side, ...] = ("train", "validation")


@dataclass(frozen=True)
class Split:
    """Which documents are held out, by a 64-bit digest of their text.

    Attributes:
        held_out: digests of the validation texts, case and spaces apart.
        documents, text_bytes: of each side; bytes are those of UTF-8.
        duplicates: what is done with a text that has come before.
        dropped: documents that are left out for that.
    """

    held_out: frozenset[int] = field(repr=False)
    documents: dict[Side, int]
    text_bytes: dict[Side, int]
    duplicates: Duplicates = "keep"
    dropped: int = 0

    def side(self, text: str) -> Side:
        """Where a document with this text belongs."""
        return "validation" if normal_digest(text) in self.held_out else "train"

    def sides(self, documents: Iterable[Document]) -> Iterator[tuple[Side, Document]]:
        """Every document with its side; duplicates are left out where that was asked for."""
        return ((self.side(document.text), document) for document in _first_ones(documents, self.duplicates))


def _first_ones(documents: Iterable[Document], duplicates: Duplicates) -> Iterator[Document]:
    """The documents, of equal ones the first."""
    if duplicates == "keep":
        yield from documents
        return
    seen: set[int] = set()
    of = digest if duplicates == "exact" else normal_digest
    for document in documents:
        key = of(document.text)
        if key not in seen:
            seen.add(key)
            yield document


def split_documents(
    documents: Iterable[Document], validation_fraction: float, seed: int, duplicates: Duplicates = "keep"
) -> Split:
    """Put whole documents on two sides, so that validation holds about `validation_fraction` of the UTF-8 bytes.

    Texts that are equal but for case and spaces go to the same side, so nothing that is validated on was trained on.
    Reads every document once and keeps none; pure in its arguments.

    Raises:
        UserError: a fraction outside (0, 1), or fewer than two different texts.
    """
    if not 0 < validation_fraction < 1:
        raise UserError(f"validation fraction {validation_fraction}: must lie between 0 and 1, both excluded")
    sizes: dict[int, int] = {}
    copies: dict[int, int] = {}  # of the texts that are there more than once
    read = 0

    def counted() -> Iterator[Document]:
        nonlocal read
        for document in documents:
            read += 1
            yield document

    for document in _first_ones(counted(), duplicates):
        key = normal_digest(document.text)
        if key in sizes:
            copies[key] = copies.get(key, 1) + 1
        sizes[key] = sizes.get(key, 0) + len(document.text.encode())
    if len(sizes) < 2:
        raise UserError(
            f"a corpus of {len(sizes)} different document(s) cannot be split into train and validation, which takes "
            'whole documents; give at least 2 (several files, or a .jsonl with one {"text": ...} a line)'
        )
    chosen = _choose(sizes, int(validation_fraction * sum(sizes.values())), seed)
    counts = {"validation": sum(copies.get(key, 1) for key in chosen)}
    total = len(sizes) + sum(copies.values()) - len(copies)
    held_bytes = sum(sizes[key] for key in chosen)
    return Split(
        frozenset(chosen),
        documents={"train": total - counts["validation"], "validation": counts["validation"]},
        text_bytes={"train": sum(sizes.values()) - held_bytes, "validation": held_bytes},
        duplicates=duplicates,
        dropped=read - total,
    )


def _choose(sizes: dict[int, int], target: int, seed: int) -> set[int]:
    """Texts of about `target` bytes together: in random order whatever still fits, then the nearer rounding."""
    texts = list(sizes)
    chosen: set[int] = set()
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
