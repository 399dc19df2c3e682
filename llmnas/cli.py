"""The command line: one verb, one function. Parses, calls the pipeline, prints; no arithmetic."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from llmnas.config import load_config
from llmnas.errors import Preempted, RunError, UserError
from llmnas.runs import RunFolder
from llmnas.tracking import Tracker

if TYPE_CHECKING:
    from llmnas.pipeline.context import Context
    from llmnas.report.html import Table

app = typer.Typer(
    name="llmnas",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find the best transformer language-model architecture for a budget.\n\n"
    "Start with: llmnas run search_configs/quickstart.yaml",
)
console = Console()

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file with every knob of the run.")]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="Where results go; default runs/<name of the config>.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Change one knob: --set train.lr=0.001 (repeatable).")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an earlier start of this run stopped.")]
Objectives = Annotated[
    list[str] | None,
    typer.Option(
        "--objective", metavar="FILE:FUNCTION",
        help="A metric of your own: --objective cost.py:dollars or cost.py:score=max (repeatable). Runs that file.",
    ),
]  # fmt: skip


@contextlib.contextmanager
def _context(
    config_path: Path, run_dir: Path | None, sets: list[str] | None, objectives: list[str] | None = None
) -> Iterator[Context]:
    from llmnas.pipeline.context import Context
    from llmnas.pipeline.metrics import own_metric, with_own

    own = [own_metric(text) for text in objectives or []]
    config = with_own(load_config(config_path, sets or []), own)
    # trials of one W&B sweep share a config name, not a folder
    trial = os.environ.get("WANDB_RUN_ID", "") if "WANDB_SWEEP_ID" in os.environ else ""
    run = RunFolder(run_dir or Path("runs") / config.name / trial)
    values = config.model_dump(mode="json")
    with Tracker(run.path, config.tracking.wandb, config.tracking.project, values) as tracker:
        context = Context(config, run, tracker, {name: function for name, _, function in own})
        if os.environ.get("RANK", "0") == "0":
            context.claim()
        yield context


def _fresh(path: Path, resume: bool) -> None:
    """Refuse to go on with what an earlier start left, unless asked to."""
    if path.exists() and not resume:
        raise UserError(f"{path}: exists already; add --resume to go on with it, or choose another --run-dir")


def _show(table: Table) -> None:
    shown = RichTable(
        title=escape(table.title), caption=escape(table.note), title_justify="left", caption_justify="left"
    )
    for i, column in enumerate(table.columns):
        shown.add_column(escape(column), justify="left" if i == 0 else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*(escape(cell) for cell in row))
    console.print(shown)


@app.command()
def run(
    config: ConfigPath, run_dir: RunDir = None, set_: Sets = None, resume: Resume = False, objective: Objectives = None
) -> None:
    """Do everything: prepare, train, search, retrain, export, report."""
    with _context(config, run_dir, set_, objective) as context:
        from llmnas.pipeline.everything import run_everything

        _fresh(context.run.manifest, resume)
        result = run_everything(context)
    for table in result.tables:
        _show(table)
    if result.exported:
        console.print(f"exported as {result.exported.class_name}, logits differ by {result.exported.difference:.1e}")
    console.print(f"report: {result.report}\nexport: {result.export}", soft_wrap=True, highlight=False)


@app.command()
def prepare(config: ConfigPath, run_dir: RunDir = None, set_: Sets = None, resume: Resume = False) -> None:
    """Read the corpus, train the tokenizer, write token files."""
    with _context(config, run_dir, set_) as context:
        from llmnas.pipeline.prepare import prepare as stage

        _fresh(context.run.tokens("validation"), resume)
        stage(context)
        console.print(f"tokens: {context.run.tokens('train').parent}", soft_wrap=True, highlight=False)


@app.command()
def train(
    config: ConfigPath,
    run_dir: RunDir = None,
    set_: Sets = None,
    resume: Resume = False,
    prepare_first: Annotated[bool, typer.Option("--prepare", help="Prepare the data first where needed.")] = False,
) -> None:
    """Train the supernet (also under: deepspeed --no_local_rank --module llmnas.cli train CONFIG)."""
    with _context(config, run_dir, set_) as context:
        from llmnas.pipeline.train import train_supernet

        _fresh(context.run.checkpoints.parent, resume)
        outcome = train_supernet(context, prepare_first=prepare_first)
        done = "complete already" if outcome is None else f"{outcome.tokens:,} tokens in {outcome.seconds:.0f} s"
        console.print(f"supernet: {context.run.supernet} ({done})", soft_wrap=True, highlight=False)


@app.command()
def search(
    config: ConfigPath, run_dir: RunDir = None, set_: Sets = None, resume: Resume = False, objective: Objectives = None
) -> None:
    """Search the trained supernet for the Pareto front."""
    with _context(config, run_dir, set_, objective) as context:
        from llmnas.pipeline.report import search_tables
        from llmnas.pipeline.search import search_supernet

        _fresh(context.run.evaluations, resume)
        archive = search_supernet(context)
        tables = search_tables(context.run, archive)
        archive.close()
    for table in tables:
        _show(table)


@app.command()
def retrain(config: ConfigPath, run_dir: RunDir = None, set_: Sets = None, resume: Resume = False) -> None:
    """Train the found architecture and hand-designed ones of equal size alone."""
    with _context(config, run_dir, set_) as context:
        from llmnas.pipeline.report import comparison_table
        from llmnas.pipeline.retrain import retrain as stage

        _fresh(context.run.result("retrain"), resume)
        table = comparison_table(stage(context))
    _show(table)


@app.command()
def correlate(config: ConfigPath, run_dir: RunDir = None, set_: Sets = None, resume: Resume = False) -> None:
    """Train K architectures of one size alone and compare their ranking with the supernet's."""
    with _context(config, run_dir, set_) as context:
        from llmnas.pipeline.correlate import correlate as stage
        from llmnas.pipeline.report import correlation_table

        _fresh(context.run.result("correlate"), resume)
        table = correlation_table(stage(context))
    _show(table)


@app.command()
def export(
    config: ConfigPath,
    run_dir: RunDir = None,
    set_: Sets = None,
    resume: Resume = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an export that exists.")] = False,
) -> None:
    """Write the retrained winner as a Hugging Face checkpoint, checked by loading it again."""
    with _context(config, run_dir, set_) as context:
        from llmnas.pipeline.export import export as stage

        result = stage(context, force=force or resume)
    console.print(f"export: {result.folder} ({result.class_name})", soft_wrap=True, highlight=False)


@app.command()
def report(config: ConfigPath, run_dir: RunDir = None, set_: Sets = None, resume: Resume = False) -> None:
    """Write report.html and the pictures from what the run folder holds."""
    with _context(config, run_dir, set_) as context:
        from llmnas.pipeline.report import report as stage

        _fresh(context.run.report, resume)
        path, _ = stage(context)
    console.print(f"report: {path}", soft_wrap=True, highlight=False)


@app.command()
def plan(
    config: ConfigPath,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="Processes, one a GPU.")] = 1,
    gpu_memory: Annotated[float, typer.Option("--gpu-memory", min=0.1, help="GB of each GPU.")] = 80.0,
    gpu_tflops: Annotated[float, typer.Option("--gpu-tflops", min=0.001, help="Peak of each GPU, 10^12/s.")] = 989.0,
    utilisation: Annotated[float, typer.Option("--utilisation", min=0.001, max=1.0, help="Share reached.")] = 0.4,
    set_: Sets = None,
) -> None:
    """Show what a run needs before it starts: memory a GPU by ZeRO stage, FLOPs, days."""
    from llmnas.pipeline.plan import Machine, tables
    from llmnas.pipeline.plan import plan as stage

    loaded = load_config(config, set_ or [])
    for table in tables(loaded, stage(loaded, Machine(gpus, gpu_memory, gpu_tflops, utilisation))):
        _show(table)


@app.command()
def doctor() -> None:
    """Show versions and devices, what is missing and how to get it."""
    from llmnas.pipeline.doctor import examine

    findings = examine()
    for finding in findings:
        mark = {True: "[green]ok[/]", False: "[red]missing[/]", None: "[yellow]none[/]"}[finding.ok]
        console.print(f"{mark:<20} {escape(finding.what)}: {escape(finding.found)}  {escape(finding.advice)}")
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(1)


def sweep_arguments(arguments: list[str]) -> list[str]:
    """A W&B agent's `--train.lr=0.001` as `--set train.lr=0.001`; everything else as it is."""
    found: list[str] = []
    for argument in arguments:
        swept = re.fullmatch(r"--(seed|\w+(?:\.\w+)+)=(.*)", argument, re.DOTALL)
        found += ["--set", f"{swept[1]}={swept[2]}"] if swept else [argument]
    return found


def main() -> None:
    """Run the command line; a user's error is one line and exit code 2, a failed run one line and 1."""
    try:
        app(sweep_arguments(sys.argv[1:]))
    except UserError as error:
        print(f"llmnas: {error}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"llmnas: {error}", file=sys.stderr)
        sys.exit(1)
    except Preempted as error:
        print(f"llmnas: {error}", file=sys.stderr)
        sys.exit(75)  # EX_TEMPFAIL: what launch/slurm.sh puts back into the queue
    except OSError as error:
        print(f"llmnas: {error.filename or 'file'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
