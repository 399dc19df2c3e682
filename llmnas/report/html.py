"""The report of a run: one HTML file that needs no network and runs no foreign text as code.

The charts are our own few hundred lines of JavaScript (`assets/`), not a plotting library. Plotly served first: it puts
4.9 MB into every page, draws points as SVG elements (20,000 of them stall the browser; its fast path needs WebGL,
which headless and remote browsers often lack) and its policy needs `unsafe-eval`. A canvas with a grid for finding the
nearest point needs none of that. HTML comes from jinja2, which escapes; matplotlib draws the PNG pictures.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from llmnas.files import write_text
from llmnas.report.findings import Findings, Table, described, packed

__all__ = ["Findings", "Table", "render", "write_report"]

# in this order: each uses what stands before it
SCRIPTS = (
    "core.js", "store.js", "scale.js", "diagram.js", "compare.js", "points.js", "scatter.js", "parallel.js",
    "lines.js", "correlation.js", "ladder.js", "panels.js", "filters.js", "main.js",
)  # fmt: skip


def write_report(path: Path, findings: Findings) -> None:
    """Write the page atomically. The same findings give the same bytes."""
    write_text(path, render(findings))


def render(findings: Findings, *, live: bool = False) -> str:
    """The page as text; a `live` one asks the server that it came from for news, any other cannot reach anything."""
    return _render(described(findings), packed(findings.evaluations), live)


def _render(described: Mapping[str, Any], evaluations: Mapping[str, Any], live: bool) -> str:
    script = "(() => {\n'use strict';\n" + "".join(asset(name) for name in SCRIPTS) + "})();\n"
    style = asset("report.css")
    for text, end in ((script, "</script"), (style, "</style")):
        if end in text.lower() or "<!--" in text:
            raise ValueError(f"an asset holds {end!r} or a comment's start, which would end or bend its element")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        asset("page.html")
    )
    return page.render(
        policy=_policy(script, style, live),
        live=live,
        script=Markup(script),  # noqa: S704 (a file of this package)
        style=Markup(style),  # noqa: S704 (a file of this package)
        data=_embedded({"described": described, "evaluations": evaluations}),
        total=evaluations["total"],
        **described,
    )


def asset(name: str) -> str:
    """The text of a file that ships with the page."""
    return (files("llmnas.report") / "assets" / name).read_text(encoding="utf-8")


def _policy(script: str, style: str, live: bool) -> str:
    """What the browser may run: this very script and style, nothing else; and no text ever becomes markup."""

    def hashed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    rules = ["default-src 'none'", f"script-src {hashed(script)}", f"style-src {hashed(style)}", "img-src data:"]
    rules += ["base-uri 'none'", "form-action 'none'", "require-trusted-types-for 'script'"]
    return "; ".join([*rules, "connect-src 'self'"] if live else rules)


def _embedded(value: Any) -> Markup:
    """JSON for inside a script element: no `<` in it, so no text can end the element or open another."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))  # noqa: S704
