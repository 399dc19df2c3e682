"""Parquet files, through Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
from pyarrow import ArrowException

from llmnas.errors import UserError


def texts(path: Path) -> Iterator[str]:
    """The column "text", row by row; a row group is in memory at a time.

    Raises:
        UserError: not parquet, damaged, or without a text in column "text" of some row (with its number).
    """
    try:
        rows = datasets.load_dataset("parquet", data_files=str(path), columns=["text"], split="train", streaming=True)
        for number, row in enumerate(rows, start=1):
            if not isinstance(row["text"], str):
                raise UserError(f'{path}: row {number}: column "text" must hold a string')
            yield row["text"]
    except (ArrowException, OSError, ValueError, datasets.exceptions.DatasetsError, KeyError) as error:
        raise UserError(f'{path}: not a parquet file with a column "text" ({" ".join(str(error).split())})') from None
