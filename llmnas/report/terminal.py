"""Tables on a terminal, and as plain lines where the output is a pipe or a file."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from llmnas.files import one_line
from llmnas.report.findings import Table


def show(console: Console, table: Table) -> None:
    """Print a table with its title and note."""
    if not console.is_terminal:  # a pipe or a file: one line a row, nothing cut or folded
        for line in _plain_lines(table):
            console.print(one_line(line), soft_wrap=True, markup=False, highlight=False)
        return
    shown = RichTable(
        title=_safe(table.title), caption=_safe(table.note), title_justify="left", caption_justify="left",
        box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for i, column in enumerate(table.columns):
        shown.add_column(_safe(column), justify="left" if i == 0 else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*(_safe(cell) for cell in row))
    console.print(shown)


def _safe(text: str) -> str:
    """Neither markup nor control characters."""
    return escape(one_line(text))


def _plain_lines(table: Table) -> Iterator[str]:
    """The table as text in aligned columns, between its title and its note."""
    rows = [table.columns, *table.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield table.title
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip()
    yield from [table.note] if table.note else []
    yield ""
