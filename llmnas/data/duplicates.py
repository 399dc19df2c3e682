"""Which texts are the same: to the byte, or but for case, spaces and forms of characters."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

Duplicates = Literal["keep", "exact", "normalised"]
_AT_ONCE = 1 << 20
"""Digests of one file that are looked at at once."""


def digest(text: str) -> int:
    """64 bits that stand for a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def normal_digest(text: str) -> int:
    """`digest` of the text without differences of case, spaces and Unicode's compatible forms (NFKC)."""
    return digest(" ".join(unicodedata.normalize("NFKC", text).casefold().split()))


def mark_repeated(files: Sequence[Path], marks: Sequence[Path], most: int = 1 << 27) -> int:
    """Find every digest that has come before, in files of little-endian uint64, and write a byte a digest: 1 for it.

    Looks at one part of all digests at a time, by value, so memory does not grow with their number.

    Args:
        files: one after the other in the order of their documents.
        marks: where the bytes of each file go.
        most: digests that are held at once.

    Returns:
        How many were marked.
    """
    sizes = [path.stat().st_size // 8 for path in files]
    parts = max(1, -(-sum(sizes) // most))
    aside = [path.with_name(f"{path.name}.new") for path in marks]  # what reads the marks of before keeps them
    for path, size in zip(aside, sizes, strict=True):
        np.zeros(size, np.uint8).tofile(path)
    found = sum(_mark_part(files, aside, part, parts) for part in range(parts))
    for path, mark in zip(aside, marks, strict=True):
        path.replace(mark)
    return found


def _mark_part(files: Sequence[Path], marks: Sequence[Path], part: int, parts: int) -> int:
    """Mark what is repeated among the digests of one part."""
    values, owners, places = [], [], []
    for number, path in enumerate(files):
        for first, found in _pieces(path):
            inside = np.flatnonzero(found % np.uint64(parts) == part)
            values.append(found[inside])
            places.append(first + inside)
            owners.append(np.full(len(inside), number, np.uint32))
    if not values:
        return 0
    value, owner, place = np.concatenate(values), np.concatenate(owners), np.concatenate(places)
    order = np.argsort(value, kind="stable")  # of equal ones the first comes first
    repeated = order[1:][value[order[1:]] == value[order[:-1]]]
    for number in np.unique(owner[repeated]):
        mine = place[repeated[owner[repeated] == number]]
        found = np.memmap(marks[number], np.uint8, "r+")
        found[mine] = 1
        found.flush()
    return len(repeated)


def _pieces(path: Path) -> list[tuple[int, np.ndarray]]:
    """(place, digests) of a file."""
    found = mapped(path, np.dtype("<u8"))
    return [(first, found[first : first + _AT_ONCE]) for first in range(0, len(found), _AT_ONCE)]


def mapped(path: Path, kind: Any) -> np.ndarray:
    """The values of a file, read where they are looked at."""
    return np.memmap(path, kind, "r") if path.stat().st_size else np.zeros(0, kind)
