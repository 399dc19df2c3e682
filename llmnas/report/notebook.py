"""A search in a notebook: as a table of text, as HTML, as a pandas frame, as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmnas.extras import require_modules
from llmnas.files import atomic_open
from llmnas.pareto import Evaluation, Objectives
from llmnas.report.findings import Table

if TYPE_CHECKING:
    import pandas

_ROWS = 20


class Picture(NamedTuple):
    """A PNG image, which a notebook shows."""

    png: bytes

    def save(self, path: str | Path) -> None:
        """Write the file."""
        with atomic_open(Path(path)) as stream:
            stream.write(self.png)

    def _repr_png_(self) -> bytes:
        return self.png

    def __repr__(self) -> str:
        return f"Picture({len(self.png):,} bytes of PNG; .save(path) writes it)"


def plot(evaluations: Sequence[Evaluation], front: Sequence[Evaluation], objectives: Objectives) -> Picture:
    """Every evaluation and the Pareto front; see `front_png`.

    Raises:
        UserError: matplotlib is not installed.
    """
    require_modules("matplotlib", use="plot")
    from llmnas.report.plots import front_png

    stream = io.BytesIO()
    front_png(stream, evaluations, front, objectives)
    return Picture(stream.getvalue())


def frame(evaluations: Sequence[Evaluation], front: Sequence[Evaluation]) -> pandas.DataFrame:
    """A row for every evaluation: id, sizes, metrics, failure (None where there is none), whether it is on the front.

    Raises:
        UserError: pandas is not installed.
    """
    require_modules("pandas", use="to_frame")
    import pandas

    best = {evaluation.index for evaluation in front}
    rows: list[dict[str, Any]] = [
        {
            "id": e.arch.id, "hidden_size": e.arch.hidden_size, "depth": e.arch.depth, **e.metrics,
            "failure": e.failure, "proposed": e.proposed, "on_front": e.index in best,
        }
        for e in evaluations
    ]  # fmt: skip
    return pandas.DataFrame(rows, index=pandas.Index([e.index for e in evaluations], name="evaluation"))


def front_table(title: str, front: Sequence[Evaluation], objectives: Objectives, note: str = "") -> Table:
    """The front, best in the first objective first; of a long one the beginning."""
    first, direction = next(iter(objectives.items()))
    ordered = sorted(front, key=lambda e: e.metrics[first], reverse=direction == "max")
    names = [*objectives, *(name for name in (ordered[0].metrics if ordered else ()) if name not in objectives)]
    rows = [(e.arch.id, str(e.arch.depth), *(_number(e.metrics.get(name)) for name in names)) for e in ordered[:_ROWS]]
    more = f"{len(ordered) - _ROWS} more" if len(ordered) > _ROWS else ""
    return Table(title, ("architecture", "depth", *names), rows, "; ".join(filter(None, [note, more])))


def html(table: Table) -> str:
    """A table as HTML without scripts or styles of its own, everything escaped."""
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    caption = f"<caption>{escape(table.title)}</caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.4g}"
