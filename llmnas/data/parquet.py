"""Parquet files, through Arrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyarrow import ArrowException
from pyarrow.parquet import ParquetFile

from llmnas.errors import UserError
from llmnas.files import open_regular, regular
from llmnas.files.packed import FREE, MOST_TIMES

_ROWS = 100
# by itself Arrow reads a whole row group at once, and writes a text out as often as its dictionary names it
_READ: dict[str, Any] = {"pre_buffer": False, "buffer_size": 1 << 20, "read_dictionary": ["text"]}
_MOST_GROUP = 1 << 31  # bytes of the column in one row group, unpacked


def texts(path: Path) -> Iterator[str]:
    """The column "text", row by row.

    Raises:
        UserError: not parquet, damaged, without a text in column "text" of some row (with its number), or one that
            unpacks to much more than its size.
    """
    number = written = 0
    most = max(FREE, MOST_TIMES * regular(path).stat().st_size)
    try:
        with open_regular(path) as stream, ParquetFile(stream, **_READ) as file:
            if "text" not in file.schema_arrow.names:
                raise KeyError(f"its columns: {', '.join(file.schema_arrow.names)}")
            _require_small_groups(file, path)
            for batch in file.iter_batches(_ROWS, columns=["text"]):
                for value in batch.column("text"):
                    number += 1
                    text = value.as_py()
                    if not isinstance(text, str):
                        raise UserError(f'{path}: row {number}: column "text" must hold a string')
                    written += len(text)
                    if written > most:
                        raise UserError(f"{path}: row {number}: its texts unpack to {MOST_TIMES} times its size")
                    yield text
    except (ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise UserError(f'{path}: not a parquet file with a column "text" ({" ".join(str(error).split())})') from None


def _require_small_groups(file: ParquetFile, path: Path) -> None:
    """Refuse a row group that Arrow would need more memory for than any honest file asks."""
    for group in range(file.num_row_groups):
        found = file.metadata.row_group(group)
        columns = [found.column(i) for i in range(found.num_columns)]
        size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema == "text")
        if not 0 <= size <= _MOST_GROUP:
            raise UserError(f"{path}: row group {group} unpacks to {size:,} bytes, at most {_MOST_GROUP:,} are read")
