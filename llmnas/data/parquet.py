"""Parquet files, through Arrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyarrow import ArrowException
from pyarrow.parquet import ParquetFile

from llmnas.data.rows import BadRows, Document, document
from llmnas.errors import UserError
from llmnas.files import open_regular, regular
from llmnas.files.packed import FREE, MOST_TIMES

_ROWS = 100
# by itself Arrow reads a whole row group at once, and writes a text out as often as its dictionary names it
_READ: dict[str, Any] = {"pre_buffer": False, "buffer_size": 1 << 20}
_MOST_GROUP = 1 << 31  # bytes of the column in one row group, unpacked
_CONVERSATION = ("messages", "prompt", "completion")


def parquet_rows(name: str, path: Path, text_field: str, bad: BadRows) -> Iterator[Document]:
    """A document a row: the column of that name (text, or bytes in UTF-8; dotted within others), or a conversation.

    Raises:
        UserError: not parquet, damaged, no such column, a row without a text (with its number) as `BadRows.note` says,
            or a file that unpacks to much more than its size.
    """
    number = written = 0
    most = max(FREE, MOST_TIMES * regular(path).stat().st_size)
    try:
        with open_regular(path) as stream, ParquetFile(stream, **_READ) as about:
            columns = _columns(about, path, text_field)
            plain = [column for column in columns if column == text_field and column in about.schema.names]
        with open_regular(path) as stream, ParquetFile(stream, **_READ, read_dictionary=plain) as file:
            _require_small_groups(file, path, columns)
            for batch in file.iter_batches(_ROWS, columns=columns):
                for row in _values(batch, columns, text_field):
                    number += 1
                    try:
                        found = document(
                            f"{name}:{number}", _as_text(row, text_field), path, f"row {number}", text_field
                        )
                    except UserError as error:
                        bad.note(error)
                        continue
                    written += len(found.text)
                    if written > most:
                        raise UserError(f"{path}: row {number}: its texts unpack to {MOST_TIMES} times its size")
                    yield found
    except (ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise UserError(f"{path}: not a parquet file that can be read ({' '.join(str(error).split())})") from None


def _columns(file: ParquetFile, path: Path, text_field: str) -> list[str]:
    """What is read of the file: the text, or the columns of conversations."""
    there = file.schema_arrow.names
    leaves = [file.schema.column(i).path for i in range(len(file.schema.names))]
    if text_field in there or any(leaf == text_field for leaf in leaves):
        return [text_field]
    columns = [column for column in _CONVERSATION if column in there]
    if not columns:
        raise UserError(f'{path}: no column "{text_field}"; its columns: {", ".join(leaves)[:500]} (text_field)')
    return columns


def _values(batch: Any, columns: list[str], text_field: str) -> Iterator[dict[str, Any]]:
    """Rows as mappings, one made at a time: a dictionary of texts is never written out."""
    names = batch.schema.names
    if columns == [text_field] and names == [text_field]:
        for value in batch.column(0):
            yield {text_field: value.as_py()}
        return
    for i in range(batch.num_rows):
        yield {name: batch.column(place)[i].as_py() for place, name in enumerate(names)}


def _as_text(row: dict[str, Any], text_field: str) -> dict[str, Any]:
    """The row, with bytes in UTF-8 as text."""
    first, _, rest = text_field.partition(".")
    holder: Any = row
    name = text_field
    if text_field not in row and rest and isinstance(row.get(first), dict):
        holder, name = row[first], rest
        if rest not in holder:
            return {first: _as_text(holder, rest)}
    value = holder.get(name) if isinstance(holder, dict) else None
    if isinstance(value, bytes):
        try:
            holder[name] = value.decode()
        except UnicodeDecodeError:
            holder[name] = None
    return row


def _require_small_groups(file: ParquetFile, path: Path, columns: list[str]) -> None:
    """Refuse a row group that Arrow would need more memory for than any honest file asks."""
    for group in range(file.num_row_groups):
        found = file.metadata.row_group(group)
        parts = [found.column(i) for i in range(found.num_columns)]
        wanted = tuple(f"{column}." for column in columns)
        size = sum(p.total_uncompressed_size for p in parts if f"{p.path_in_schema}.".startswith(wanted))
        if not 0 <= size <= _MOST_GROUP:
            raise UserError(f"{path}: row group {group} unpacks to {size:,} bytes, at most {_MOST_GROUP:,} are read")
