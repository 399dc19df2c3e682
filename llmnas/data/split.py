"""Train and validation: whole documents, equal texts on one side; about 200 bytes of memory a document."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from llmnas.data.reading import Document
from llmnas.errors import UserError
from llmnas.rng import generator

Side = Literal["train", "validation"]
SIDES: tuple[Side, ...] = ("train", "validation")


@dataclass(frozen=True)
class Split:
    """Which documents are held out, by a 64-bit digest of their text.

    Attributes:
        held_out: digests of the validation texts.
        documents, text_bytes: of each side; bytes are those of UTF-8.
    """

    held_out: frozenset[int] = field(repr=False)
    documents: dict[Side, int]
    text_bytes: dict[Side, int]

    def side(self, text: str) -> Side:
        """Where a document with this text belongs."""
        return "validation" if digest(text) in self.held_out else "train"


def digest(text: str) -> int:
    """64 bits that stand for a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def split_documents(documents: Iterable[Document], validation_fraction: float, seed: int) -> Split:
    """Put whole documents on two sides, so that validation holds about `validation_fraction` of the UTF-8 bytes.

    Equal texts go to the same side, so nothing that is validated on was trained on. Reads every document once and
    keeps none; pure in its arguments.

    Raises:
        UserError: a fraction outside (0, 1), or fewer than two different texts.
    """
    if not 0 < validation_fraction < 1:
        raise UserError(f"validation fraction {validation_fraction}: must lie between 0 and 1, both excluded")
    sizes: dict[int, int] = {}
    copies: dict[int, int] = {}  # of the texts that are there more than once
    for document in documents:
        key = digest(document.text)
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
