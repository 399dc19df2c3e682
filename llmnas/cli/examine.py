"""Verbs that use or examine what a run made."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llmnas.cli.app import ConfigPath, Objectives, Resume, RunDir, Sets, app, console, open_context, require_fresh, say
from llmnas.config import load_config
from llmnas.errors import RunError, UserError
from llmnas.files import user_path
from llmnas.report.terminal import show


@app.command()
def generate(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN_DIR", parser=user_path, help="A run folder, or an exported checkpoint.")
    ],
    prompt: Annotated[str, typer.Option("--prompt", help="Text to go on from.")],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="How many tokens to add at most.")] = 100,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, help="0 always takes the likeliest token.")
    ] = 0.5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same text.")] = 0,
    latency_ms: Annotated[
        float | None, typer.Option("--latency-ms", help="Elastic checkpoint: at most so long a token, measured first.")
    ] = None,
    params: Annotated[
        str | None, typer.Option("--params", help="Elastic checkpoint: at most so many parameters: 800000, 1.5M.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", help="Elastic checkpoint: at most so many bytes: 800000, 1.5M, 2B.")
    ] = None,
    adapt: Annotated[
        bool, typer.Option("--adapt", help="Keep --latency-ms while the load changes: other sub-networks take over.")
    ] = False,
) -> None:
    """Let the exported model go on with a text; a limit picks the best sub-network of an elastic checkpoint."""
    from llmnas.pipeline.exported import elastic_folder, exported_folder

    limits = _limits(latency_ms, params, memory)
    if limits or adapt:
        checkpoint = elastic_folder(folder)  # what is no checkpoint is refused before anything heavy is loaded
        from llmnas.pipeline.elastic import Asked, go_on_adapting, go_on_within

        asked = Asked(prompt, tokens, temperature, seed)
        within = go_on_adapting if adapt else go_on_within
        print(within(checkpoint, asked, limits, lambda text: print(text, file=sys.stderr)))
        return
    checkpoint = exported_folder(folder)
    from llmnas.pipeline.export import go_on

    print(go_on(checkpoint, prompt, tokens=tokens, temperature=temperature, seed=seed))


def _limits(latency_ms: float | None, params: str | None, memory: str | None) -> dict[str, float]:
    """The limits that were given, by the names of `llmnas.export.subnetworks.LIMITS`."""
    from llmnas.pipeline.init import parse_count

    given = {
        "latency_ms": latency_ms,
        "params": None if params is None else parse_count(params, "--params"),
        "memory_bytes": None if memory is None else parse_count(memory, "--memory", "bytes"),
    }
    return {name: value for name, value in given.items() if value is not None}


@app.command()
def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN|EXPORT", parser=user_path, help="A run folder, or an exported checkpoint.")
    ],
    tokens: Annotated[
        Path | None,
        typer.Option(
            "--tokens", parser=user_path, help="Validation tokens of an export that lies elsewhere than its run."
        ),
    ] = None,
) -> None:
    """Check every file against the hash it was written with, and an exported model's loss against its card."""
    from llmnas.pipeline.verify import verify as check

    verdict = check(folder, tokens)
    for line in (*verdict.damaged, *verdict.unknown, *verdict.losses):
        say(line)
    say(f"{verdict.whole} files as they were written, {len(verdict.damaged)} damaged, {len(verdict.unknown)} unknown")
    if verdict.damaged:
        raise RunError(f"{folder}: damaged: {len(verdict.damaged)} of what was checked")


@app.command()
def correlate(config: ConfigPath, run_dir: RunDir = None, set_: Sets = None, resume: Resume = False) -> None:
    """Train K architectures of one size alone and compare their ranking with the supernet's."""
    with open_context(config, run_dir, set_) as context:
        from llmnas.pipeline.correlate import correlate as stage
        from llmnas.pipeline.tables import correlation_table

        require_fresh(context.run.result("correlate"), resume)
        table = correlation_table(stage(context))
    show(console, table)


@app.command()
def ladder(config: ConfigPath, run_dir: RunDir = None, set_: Sets = None, resume: Resume = False) -> None:
    """Find the best layers to keep for every depth, and compare with the same depths trained alone."""
    with open_context(config, run_dir, set_) as context:
        from llmnas.pipeline.ladder import ladder as stage
        from llmnas.pipeline.tables import ladder_table

        require_fresh(context.run.result("ladder"), resume)
        table = ladder_table(stage(context))
    show(console, table)


@app.command()
def speculate(config: ConfigPath, run_dir: RunDir = None, set_: Sets = None, resume: Resume = False) -> None:
    """Find the sub-network that drafts best for the whole one, and generate with both."""
    with open_context(config, run_dir, set_) as context:
        from llmnas.pipeline.speculate import speculate as stage
        from llmnas.pipeline.speculate import speculation_table

        require_fresh(context.run.result("speculate"), resume)
        table = speculation_table(stage(context))
    show(console, table)


@app.command()
def compare(
    config: ConfigPath,
    run_dir: RunDir = None,
    set_: Sets = None,
    resume: Resume = False,
    table: Annotated[
        Path | None,
        typer.Option(
            "--table",
            metavar="PATH",
            parser=user_path,
            help="An evaluations.sqlite or a .csv.gz; a predictor of it is searched.",
        ),
    ] = None,
) -> None:
    """Run several strategies with several seeds and compare their hypervolumes."""
    with open_context(config, run_dir, set_) as context:
        from llmnas.pipeline.compare import compare_strategies, strategies_table

        require_fresh(context.run.result("compare"), resume)
        shown = strategies_table(compare_strategies(context, table))
    show(console, shown)


class Subject(StrEnum):
    """What `analyse` looks at."""

    experts = "experts"


@app.command()
def analyse(
    subject: Annotated[
        Subject, typer.Argument(metavar="experts", help="What to look at: experts (and their routers).")
    ],
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", parser=user_path, help="The config of a run, or its run folder.")
    ],
    run_dir: RunDir = None,
    set_: Sets = None,
    resume: Resume = False,
    objective: Objectives = None,
) -> None:
    """Turn what a trained supernet learnt into architectures: how many experts each layer needs."""
    if config.is_dir():
        if run_dir is not None:
            raise UserError(f"--run-dir: {config} is a run folder already; give one of them")
        config, run_dir = config / "config.yaml", config
    with open_context(config, run_dir, set_, objective) as context:
        assert subject is Subject.experts
        from llmnas.pipeline.experts import analyse_experts, experts_tables

        require_fresh(context.run.result("experts"), resume)
        tables = experts_tables(analyse_experts(context))
    for table in tables:
        show(console, table)


@app.command()
def extract(
    config: ConfigPath,
    run_dir: RunDir = None,
    set_: Sets = None,
    resume: Resume = False,
    method: Annotated[str | None, typer.Option("--method", help="ofa (predictor) or mip (integer program).")] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option("--targets", metavar="METRIC=N,N", help="Upper limits: --targets params=500k,1.5M (repeatable)."),
    ] = None,
) -> None:
    """Take the best networks for a list of targets out of the trained supernet."""
    sets = [*(set_ or []), *([f"extract.method={method}"] if method else []), *map(target_setting, targets or [])]
    with open_context(config, run_dir, sets) as context:
        from llmnas.pipeline.extract import extract as stage
        from llmnas.pipeline.extract import extract_table

        require_fresh(context.run.result("extract").with_name(f"{context.config.extract.method}.json"), resume)
        table = extract_table(stage(context))
    show(console, table)


def target_setting(text: str) -> str:
    """`latency_ms=10,20` as the setting of a config."""
    from llmnas.pipeline.init import parse_limit

    name, _, limits = text.partition("=")
    if not name.isidentifier() or not limits:
        raise UserError(f"--targets {text}: must read metric=limit,limit, for instance latency_ms=10,20,40")
    return f"extract.targets.{name}=[{', '.join(repr(parse_limit(name, limit)) for limit in limits.split(','))}]"


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
