"""Tables of evaluations that a strategy can be compared on without a supernet: `.csv.gz`, or a search's archive.

A row of the CSV is an architecture's code (`space.encode`, digits in base 36, one for each decision that has a choice,
so that a dimension added later, with one value, changes no table) and its metrics.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmnas.archive import Archive
from llmnas.errors import UserError
from llmnas.files import atomic_open, open_unpacked, read_most
from llmnas.pareto import Evaluation
from llmnas.space import SearchSpace, cardinalities, decode, encode

_MOST = 1 << 28  # bytes of a table, unpacked
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def write_table(path: Path, space: SearchSpace, evaluations: Sequence[Evaluation], metrics: Sequence[str]) -> None:
    """Write those that succeeded and have these metrics as CSV; the same evaluations give the same bytes.

    Raises:
        UserError: a decision of the space has more than 36 choices.
    """
    if max(cardinalities(space)) > len(_DIGITS):
        raise UserError(f"table: a decision of this space has more than {len(_DIGITS)} choices")
    free = np.array(cardinalities(space)) > 1
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["code", *metrics])
    for e in evaluations:
        if e.failure is None and all(name in e.metrics for name in metrics):
            code = "".join(_DIGITS[digit] for digit in encode(space, e.arch)[free])
            writer.writerow([code, *(f"{e.metrics[name]:.9g}" for name in metrics)])
    with atomic_open(path) as stream:
        stream.write(gzip.compress(text.getvalue().encode(), mtime=0))


def read_table(path: Path, space: SearchSpace) -> list[Evaluation]:
    """The evaluations of a table that succeeded.

    Raises:
        UserError: no such file, damaged, or made with another space.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".gz":
        rows = _read_csv(path, space)
    else:
        archive = Archive.load(path)
        rows = [e for e in archive.evaluations if e.failure is None]
        archive.close()
    strange = [e.arch.id for e in rows if not space.contains(e.arch)]
    if strange:
        raise UserError(f"{path}: {strange[0]} and {len(strange) - 1} more rows are of another search space")
    return rows


def _text(path: Path) -> str:
    with open_unpacked(path) as stream:
        return read_most(stream, _MOST).decode()


def _read_csv(path: Path, space: SearchSpace) -> list[Evaluation]:
    line = 1
    free = np.flatnonzero(np.array(cardinalities(space)) > 1)
    try:
        rows = csv.reader(io.StringIO(_text(path)))
        metrics = next(rows)[1:]
        found = []
        for row in rows:
            line += 1
            code = np.zeros(len(cardinalities(space)), dtype=np.int64)
            if len(row[0]) != len(free):
                raise ValueError(f"a code of {len(row[0])} digits, this space has {len(free)} decisions")
            code[free] = [_DIGITS.index(digit) for digit in row[0]]
            values = dict(zip(metrics, map(float, row[1:]), strict=True))
            if not all(math.isfinite(value) for value in values.values()):
                raise ValueError("a metric that is not finite")
            found.append(Evaluation(decode(space, code), values, None, line - 2))
    except (OSError, EOFError, ValueError, StopIteration, IndexError) as error:
        raise UserError(f"{path}: line {line}: not a table of this search space ({error})") from None
    return found
