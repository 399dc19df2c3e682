"""Tables of the measuring scripts as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmnas.files import write_text


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Rows as CSV with a header; `columns`, those of the first row where none are given, fix their order.

    Raises:
        ValueError: no rows and no columns, or a row with a column that is none of them.
    """
    if columns is None and not rows:
        raise ValueError("a table needs rows, or columns")
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]) if columns is None else columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows whole or not at all, and say where."""
    write_text(path, csv_text(rows))
    print(f"wrote {path}")


def line(row: Mapping[str, Any]) -> str:
    """A row for a person to read while the rest is measured."""
    return ", ".join(f"{name} {value}" for name, value in row.items() if value != "")
