"""The stages of a run: one verb, one function. Parses, calls the pipeline, prints; no arithmetic."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from llmnas.cli.app import (
    FIRST_RANK,
    ConfigPath,
    Objectives,
    Resume,
    RunDir,
    Sets,
    app,
    console,
    open_context,
    require_fresh,
    say,
)  # fmt: skip
from llmnas.errors import UserError
from llmnas.extras import require
from llmnas.report.terminal import show
from llmnas.runs import RunFolder


@app.command()
def run(
    config: ConfigPath, run_dir: RunDir = None, set_: Sets = None, resume: Resume = False, objective: Objectives = None
) -> None:
    """Do everything: prepare, train, search, retrain, export, report."""
    require("train", "export", "report", use="llmnas run")
    with open_context(config, run_dir, set_, objective) as context:
        from llmnas.pipeline.everything import run_everything

        require_fresh(context.run.manifest, resume)
        result = run_everything(context)
    for table in result.tables:
        show(console, table)
    if result.exported:
        say(f"exported as {result.exported.class_name}, logits differ by {result.exported.difference:.1e}")
    say(f"report: {result.report}", f"export: {result.export}", "", "What next:", *_next_steps(context.run))


def _next_steps(run: RunFolder) -> list[str]:
    """Commands that use what a finished run left, and the one that begins with another text."""
    folder = shlex.quote(str(run.path))
    again = f"{shlex.quote(str(run.config))} --run-dir {folder}"
    return [
        f'  llmnas generate {folder} --prompt "The"    # text from the exported model',
        f"  llmnas export {again} --elastic    # one checkpoint, its size is chosen when it runs",
        "  llmnas init my.yaml --corpus my_texts/ --max-params 1M    # your own text and budget",
    ]


@app.command()
def train(
    config: ConfigPath,
    run_dir: RunDir = None,
    set_: Sets = None,
    resume: Resume = False,
    init_from: Annotated[
        str | None,
        typer.Option("--init-from", metavar="DIR", help="A pretrained model to start from, with its tokenizer."),
    ] = None,
    prepare_first: Annotated[bool, typer.Option("--prepare", help="Prepare the data first where needed.")] = False,
    method: Annotated[
        Literal["sampled", "darts"],
        typer.Option("--method", help="Train drawn networks, or all of them as one mixture and search by gradients."),
    ] = "sampled",
) -> None:
    """Train the supernet (also under: deepspeed --no_local_rank --module llmnas.cli train CONFIG)."""
    if init_from is not None:
        folder = json.dumps(init_from, ensure_ascii=False)  # also where it is called 2024 or `a: b`, no text to YAML
        set_ = [f"train.init_from={folder}", f"data.tokenizer={folder}", *(set_ or [])]
    if method == "darts":
        _train_darts(config, run_dir, set_, resume=resume, prepare_first=prepare_first)
        return
    with open_context(config, run_dir, set_) as context:
        from llmnas.pipeline.train import train_supernet

        require_fresh(context.run.checkpoints.parent, resume)
        outcome = train_supernet(context, prepare_first=prepare_first)
        done = "complete already" if outcome is None else f"{outcome.tokens:,} tokens in {outcome.seconds:.0f} s"
        say(f"supernet: {context.run.supernet} ({done})")


def _train_darts(
    config: Path, run_dir: Path | None, set_: list[str] | None, *, resume: bool, prepare_first: bool
) -> None:
    with open_context(config, run_dir, set_, claim=False) as context:
        from llmnas.pipeline.darts import darts_table, require_possible, search_by_gradients

        require_possible(context)  # before the folder is bound to a config that cannot run
        if FIRST_RANK:
            context.claim()
        require_fresh(context.run.checkpoints.parent, resume)
        table = darts_table(search_by_gradients(context, prepare_first=prepare_first))
    show(console, table)
    say(f"archive: {context.run.evaluations}")


@app.command()
def search(
    config: ConfigPath, run_dir: RunDir = None, set_: Sets = None, resume: Resume = False, objective: Objectives = None
) -> None:
    """Search the trained supernet for the Pareto front (also under the deepspeed launcher, as train)."""
    with open_context(config, run_dir, set_, objective) as context:
        from llmnas.pipeline.search import help_search, search_supernet
        from llmnas.pipeline.tables import search_tables

        if not FIRST_RANK:
            help_search(context)
            return
        require_fresh(context.run.evaluations, resume)
        archive = search_supernet(context)
        asked = [*archive.objectives, *archive.constraints]
        tables = search_tables(context.run, archive.front(), archive.evaluations, asked, archive.constraints)
        archive.close()
    for table in tables:
        show(console, table)


@app.command()
def retrain(config: ConfigPath, run_dir: RunDir = None, set_: Sets = None, resume: Resume = False) -> None:
    """Train the found architecture and hand-designed ones of equal size alone."""
    with open_context(config, run_dir, set_) as context:
        from llmnas.pipeline.retrain import retrain as stage
        from llmnas.pipeline.tables import comparison_table

        require_fresh(context.run.result("retrain"), resume)
        table = comparison_table(stage(context))
    show(console, table)


@app.command()
def export(
    config: ConfigPath,
    run_dir: RunDir = None,
    set_: Sets = None,
    resume: Resume = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an export that exists.")] = False,
    elastic: Annotated[
        bool, typer.Option("--elastic", help="All weights of the supernet and the table of its best sub-networks.")
    ] = False,
    format_: Annotated[
        Literal["hf", "gguf", "block_configs"],
        typer.Option(
            "--format",
            help="A Hugging Face folder, one GGUF file for llama.cpp, or a folder with sizes by layer for vLLM.",
        ),
    ] = "hf",
    ternary: Annotated[
        Literal["tq1_0", "tq2_0"] | None,
        typer.Option(
            "--ternary", help="With --format gguf: the type of ternary weights, 1.7 or 2.1 bits; default tq2_0."
        ),
    ] = None,
    split_special: Annotated[
        bool,
        typer.Option(
            "--split-special-tokens",
            help="The tokenizer of a folder reads special tokens written in a text as plain characters.",
        ),
    ] = False,
) -> None:
    """Write the retrained winner as a Hugging Face checkpoint or GGUF file, checked by reading it again."""
    if elastic and format_ != "hf":
        raise UserError(f"--format {format_}: not with --elastic, whose checkpoint is a Hugging Face folder")
    if ternary and format_ != "gguf":
        raise UserError(f"--ternary {ternary}: only with --format gguf")
    if split_special and format_ == "gguf":
        raise UserError("--split-special-tokens: is for Hugging Face folders; a GGUF file cannot say it")
    require("train", "export", *(["gguf"] if format_ == "gguf" else []), use="llmnas export")
    with open_context(config, run_dir, set_) as context:
        if elastic:
            from llmnas.pipeline.elastic import export as elastic_stage

            made = elastic_stage(context, force=force or resume, split_special=split_special)
            say(f"export: {made.folder} ({len(made.subnetworks)} sub-networks)")
            return
        if format_ == "gguf":
            from llmnas.pipeline.export import export_as_gguf

            path, name = export_as_gguf(context, force=force or resume, ternary=ternary)
            say(f"export: {path} (GGUF, {name})")
            return
        from llmnas.pipeline.export import export as stage

        result = stage(context, force=force or resume, blocks=format_ == "block_configs", split_special=split_special)
    say(f"export: {result.folder} ({result.class_name})")


@app.command()
def report(
    config: ConfigPath,
    run_dir: RunDir = None,
    set_: Sets = None,
    resume: Resume = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Follow the run in a browser instead; writes nothing.")
    ] = False,
    port: Annotated[int | None, typer.Option("--port", help="With --serve: default 8765, 0 takes a free one.")] = None,
) -> None:
    """Write report.html and the pictures from what the run folder holds."""
    if serve and resume:
        raise UserError("--resume: means nothing with --serve, which writes no report")
    if port is not None and not serve:
        raise UserError("--port: only with --serve")
    if serve:
        with open_context(config, run_dir, set_, claim=False, lock=False) as context:
            from llmnas.pipeline.report import follow

            server = follow(context, 8765 if port is None else port)
        say(f"following {context.run.path} at {server.address} (Ctrl-C ends)")
        sys.stdout.flush()  # into a pipe, it would come when the server ends
        with contextlib.suppress(KeyboardInterrupt), server:
            server.serve_forever()
        return
    with open_context(config, run_dir, set_) as context:
        from llmnas.pipeline.report import report as stage

        require_fresh(context.run.report, resume)
        path, _ = stage(context)
    say(f"report: {path}")
