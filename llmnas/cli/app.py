"""What every verb shares: the application, its common options, the run that a verb works on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from llmnas import __version__
from llmnas.config import Config, load_config
from llmnas.distributed.lock import locked
from llmnas.errors import UserError
from llmnas.extras import require
from llmnas.files import one_line, user_path
from llmnas.runs import RunFolder
from llmnas.tracking import Tracker

if TYPE_CHECKING:
    from llmnas.pipeline.context import Context
    from llmnas.pipeline.metrics import OwnMetric

app = typer.Typer(
    name="llmnas",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Find the best transformer language-model architecture for a budget.\n\n"
    "One elastic supernet is trained on your text, its sub-networks are searched, the best one is trained alone "
    "and exported as a Hugging Face checkpoint.\n\n"
    "Try it:        llmnas run quickstart\n\n"
    "Your own text: llmnas init my.yaml --corpus my_texts/ --max-params 1M, then llmnas run my.yaml\n\n"
    "Stopped half way? Add --resume. One stage alone: llmnas prepare my.yaml, llmnas train my.yaml, and so on.",
)
FIRST_RANK = os.environ.get("RANK", "0") == "0"
console = Console(quiet=not FIRST_RANK)  # under a launcher one process speaks for all


def say(*lines: str) -> None:
    """Print lines as they are: names of files are no markup, and end no line."""
    for line in lines:
        console.print(one_line(line), soft_wrap=True, highlight=False, markup=False)


_OF_ALL_RANKS = ("train", "search")
"""Verbs whose work the processes of a launch share; in all others every process would write the same files."""

ConfigPath = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG", parser=user_path,
        help="YAML file with every knob of the run, or the name of a shipped one (quickstart).",
    ),
]  # fmt: skip
RunDir = Annotated[
    Path | None,
    typer.Option(
        "--run-dir", metavar="PATH", parser=user_path, help="Where results go; default runs/<name of the config>."
    ),
]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Change one knob: --set train.lr=0.001 (repeatable).")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an earlier start of this run stopped.")]
Objectives = Annotated[
    list[str] | None,
    typer.Option(
        "--objective", metavar="FILE:FUNCTION",
        help="A metric of your own: --objective cost.py:dollars or cost.py:score=max (repeatable). Runs that file.",
    ),
]  # fmt: skip


def _tell_version(asked: bool) -> None:
    if asked:
        print(f"llmnas {__version__}")
        raise typer.Exit


@app.callback()
def require_shared_work(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 (told before anything else is looked at)
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Under a launcher refuse the verbs that one process does alone; half a launcher is refused by all."""
    processes, verb = _launched(), context.invoked_subcommand
    if processes > 1 and verb not in _OF_ALL_RANKS:
        raise UserError(
            f"{verb}: runs in one process, and a launcher started {processes}; start it as `llmnas {verb}`. "
            f"Under a launcher run: {', '.join(_OF_ALL_RANKS)}"
        )


def _launched() -> int:
    """How many processes a launcher has started; 1 without one.

    Raises:
        UserError: only some of a launcher's variables are set, or no numbers.
    """
    said = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    numbers = {name: said[name] for name in ("RANK", "WORLD_SIZE", "MASTER_PORT") if said[name]}
    wrong = [f"{name}={value}" for name, value in numbers.items() if not value.isdecimal()]
    if wrong:
        raise UserError(f"{wrong[0]}: must be a whole number; a launcher sets it, `unset {wrong[0].split('=')[0]}`")
    lacking = [name for name, value in said.items() if not value]
    if said["RANK"] and lacking:
        raise UserError(
            f"RANK={said['RANK']} is set and {', '.join(lacking)} not: start it with deepspeed or torchrun, which set "
            "all of them, or `unset RANK` to run one process"
        )
    return int(said["WORLD_SIZE"] or 1)


@contextlib.contextmanager
def open_context(
    config_path: Path,
    run_dir: Path | None,
    sets: list[str] | None,
    objectives: list[str] | None = None,
    *,
    claim: bool = True,
    lock: bool = True,
) -> Iterator[Context]:
    """The run that a verb works on; `claim` binds its folder to the config, `lock` keeps other processes out of it."""
    require("train", use="this verb")
    from llmnas.pipeline.metrics import own_metric, with_own

    own = [own_metric(text) for text in objectives or []]
    config = with_own(load_config(config_path, sets or []), own)
    with open_run(config, run_dir, {name: function for name, _, function in own}, claim=claim, lock=lock) as context:
        yield context


@contextlib.contextmanager
def open_run(
    config: Config,
    run_dir: Path | None,
    own: Mapping[str, OwnMetric] = MappingProxyType({}),
    *,
    claim: bool = True,
    lock: bool = True,
) -> Iterator[Context]:
    """The run of a config; `claim` binds its folder to it, `lock` keeps others out, `own` are metrics of the user's."""
    from llmnas.pipeline.context import Context

    # trials of one W&B sweep share a config name, not a folder
    trial = os.environ.get("WANDB_RUN_ID", "") if "WANDB_SWEEP_ID" in os.environ else ""
    run = RunFolder(run_dir or Path("runs") / config.name / trial)
    values = config.model_dump(mode="json")
    with contextlib.ExitStack() as stack:
        if lock and FIRST_RANK:  # the other processes of a launch are led by the first
            stack.enter_context(locked(run.path))
        tracker = stack.enter_context(Tracker(run.path, config.tracking.wandb, config.tracking.project, values))
        context = Context(config, run, tracker, own)
        if claim and FIRST_RANK:
            context.claim()
        yield context
        if lock and FIRST_RANK:
            run.seal_evaluations()


def require_fresh(path: Path, resume: bool) -> None:
    """Refuse to go on with what an earlier start left, unless asked to."""
    if path.exists() and not resume:
        raise UserError(f"{path}: exists already; add --resume to go on with it, or choose another --run-dir")
