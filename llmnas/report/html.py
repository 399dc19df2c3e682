"""The report of a run: one HTML file that needs no network and runs no foreign text as code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from llmnas.files import write_text
from llmnas.pareto import Evaluation, Objectives
from llmnas.report.series import GREY, PALETTE, VERMILION, Curve, axis_label, loss_curves, panels, points
from llmnas.space import Architecture, LayerSpec

# The policy makes the browser itself refuse whatever would load something.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data: blob:;
 style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1000px; margin: 2rem auto; padding: 0 1rem }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2.5rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
.note { color: #555 }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<div class="scroll"><table>
{% for name, value in summary.items() %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table></div>
{% for table in tables %}
<h2>{{ table.title }}</h2>
<div class="scroll"><table>
<thead><tr>{% for column in table.columns %}<th>{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>
{% if not table.rows %}<p class="note">Empty.</p>{% endif %}
<p class="note">{{ table.note }}</p>
{% endfor %}
<h2>Every evaluation</h2>
<p class="note">{{ shown }} evaluations{% if failed %}, and {{ failed }} that failed and are not drawn{% endif %};
 {{ on_front }} on the Pareto front. Point at one to see its architecture.</p>
{% for figure in scatters %}{{ figure }}
{% endfor %}
<h2>Training</h2>
{% if curves %}{{ curves }}{% else %}<p class="note">No training curve was recorded.</p>{% endif %}
</body>
</html>
"""


@dataclass(frozen=True)
class Table:
    """A table of text, ready to be shown; `note` says below it what the numbers are."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise ValueError(f"table {self.title!r} has {len(self.columns)} columns, but a row is {wrong[0]}")


def write_report(
    path: Path,
    *,
    title: str,
    space_summary: Mapping[str, str],
    evaluations: Sequence[Evaluation],
    front: Sequence[Evaluation],
    objectives: Objectives,
    records: Sequence[Mapping[str, Any]],
    tables: Sequence[Table],
) -> None:
    """Write the page atomically: summary, tables, an interactive scatter of the search, training curves.

    Args:
        records: of metrics.jsonl, each with `stage`, `step` and metrics; the losses are drawn.
        tables: shown in the order given. All text is escaped here.
    """
    scatters = [_scatter(evaluations, front, x, y) for x, y in panels(objectives)]
    curves = loss_curves(records)
    failed = sum(e.failure is not None for e in evaluations)
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(_PAGE)
    write_text(
        path,
        page.render(
            title=title,
            summary=space_summary,
            tables=tables,
            shown=len(evaluations) - failed,
            failed=failed,
            on_front=len(front),
            # the first figure brings plotly's code for all
            scatters=[_embed(figure, f"scatter-{i}", with_code=i == 0) for i, figure in enumerate(scatters)],
            curves=_embed(_curves(curves), "curves", with_code=False) if curves else None,
        ),
    )


def describe(arch: Architecture) -> str:
    """An architecture in a few lines of plain text, equal neighbouring layers together."""
    lines = [f"{arch.id}: hidden {arch.hidden_size}, {arch.depth} of {len(arch.layers)} layers"]
    for spec, same in groupby(enumerate(arch.layers), key=lambda numbered: numbered[1]):
        numbers = [i for i, _ in same]
        span = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
        lines.append(f"layer {span}: {_sizes(spec)}")
    return "\n".join(lines)


def _sizes(spec: LayerSpec | None) -> str:
    if spec is None:
        return "skipped"
    return f"{spec.q_heads} heads / {spec.kv_heads} KV x {spec.head_dim}, FFN {spec.ffn_size}"


def _hover(evaluation: Evaluation) -> str:
    """`describe` and all metrics in plotly's markup, which takes tags: text must be escaped for it too."""
    metrics = "\n".join(f"{name}: {value:,.6g}" for name, value in evaluation.metrics.items())
    return escape(f"{describe(evaluation.arch)}\n{metrics}").replace("\n", "<br>")


def _scatter(evaluations: Sequence[Evaluation], front: Sequence[Evaluation], x: str, y: str) -> go.Figure:
    figure = go.Figure()
    for name, chosen, style in (
        ("evaluated", evaluations, {"mode": "markers", "marker": {"color": GREY, "size": 7}}),
        ("Pareto front", front, {"mode": "lines+markers", "marker": {"color": VERMILION, "size": 9}}),
    ):
        drawn = points((e for e in chosen if e.failure is None), x, y)
        figure.add_scatter(
            name=name, x=[p[0] for p in drawn], y=[p[1] for p in drawn], hoverinfo="text",
            hovertext=[_hover(p[2]) for p in drawn], **style,
        )  # fmt: skip
    return _styled(figure, axis_label(x), axis_label(y))


def _curves(curves: Sequence[Curve]) -> go.Figure:
    figure = go.Figure()
    for i, curve in enumerate(curves):
        figure.add_scatter(
            name=escape(curve.label), x=curve.steps, y=curve.values, mode="lines+markers",
            marker={"size": 4, "color": PALETTE[i % len(PALETTE)]},
        )  # fmt: skip
    return _styled(figure, "optimizer step", "loss (nats/token)")


def _styled(figure: go.Figure, x_label: str, y_label: str) -> go.Figure:
    return figure.update_layout(
        template="plotly_white",
        xaxis_title=escape(x_label),
        yaxis_title=escape(y_label),
        hoverlabel={"align": "left", "font": {"family": "monospace"}},
        legend={"orientation": "h", "y": 1.1},
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
        height=480,
    )


def _embed(figure: go.Figure, name: str, *, with_code: bool) -> Markup:
    """The figure as HTML; plotly writes its JSON with `<`, `>` and `/` as escapes, so no text can end the script."""
    text = figure.to_html(
        full_html=False, include_plotlyjs=with_code, div_id=name, config={"displaylogo": False, "responsive": True}
    )
    return Markup(text)  # noqa: S704 (made by plotly from text escaped above)
