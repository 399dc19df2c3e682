"""Parquet files, through Arrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pyarrow import ArrowException
from pyarrow.parquet import ParquetFile

from llmnas.errors import UserError

_ROWS = 100
# by itself Arrow reads a whole row group at once
_READ = {"pre_buffer": False, "buffer_size": 1 << 20}


def texts(path: Path) -> Iterator[str]:
    """The column "text", row by row.

    Raises:
        UserError: not parquet, damaged, or without a text in column "text" of some row (with its number).
    """
    number = 0
    try:
        with path.open("rb") as stream, ParquetFile(stream, **_READ) as file:
            if "text" not in file.schema_arrow.names:
                raise KeyError(f"its columns: {', '.join(file.schema_arrow.names)}")
            for batch in file.iter_batches(_ROWS, columns=["text"]):
                for value in batch.column("text").to_pylist():
                    number += 1
                    if not isinstance(value, str):
                        raise UserError(f'{path}: row {number}: column "text" must hold a string')
                    yield value
    except (ArrowException, OSError, ValueError, KeyError) as error:
        raise UserError(f'{path}: not a parquet file with a column "text" ({" ".join(str(error).split())})') from None
