"""Verbs for the first minutes: a config, and what is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from llmnas.cli.app import app, console, say
from llmnas.config import Device
from llmnas.files import user_path


@app.command()
def init(
    path: Annotated[Path, typer.Argument(metavar="CONFIG", parser=user_path, help="YAML file to write.")],
    corpus: Annotated[
        str, typer.Option("--corpus", help="Text: a folder, a .txt, .md, .jsonl or .parquet file, or sotu.")
    ],
    max_params: Annotated[str, typer.Option("--max-params", help="Parameter budget: 800000, 1.5M, 2B.")],
    device: Annotated[
        Device | None,
        typer.Option("--device", help="Search loss against latency on it: this machine, or a GPU by its data sheet."),
    ] = None,
    latency_ms: Annotated[
        float | None, typer.Option("--latency-ms", min=1e-6, help="At most so long a generated token on that device.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
) -> None:
    """Write a commented config for your text, device and budget."""
    from llmnas.pipeline.init import parse_count, write_config

    written = write_config(path, corpus, parse_count(max_params), force=force, device=device, latency_ms=latency_ms)
    say(*written.summary.split("\n"), f"config: {path}", f"next: llmnas run {path}")


@app.command()
def doctor() -> None:
    """Show versions and devices, what is missing and how to get it."""
    from llmnas.pipeline.doctor import examine

    findings = examine()
    for finding in findings:
        colour, word = {True: ("green", "ok"), False: ("red", "missing"), None: ("yellow", "none")}[finding.ok]
        advice = f"  -> {escape(finding.advice)}" if finding.advice else ""
        line = f"[{colour}]{word:<8}[/]{escape(finding.what)}: {escape(finding.found)}{advice}"
        console.print(line, soft_wrap=True, highlight=False)
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(1)
