"""Metrics: always to metrics.jsonl, to W&B as the config says, and to the terminal."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from llmnas.files import write_text

WandbMode = Literal["off", "offline", "online"]


class Tracker:
    """Receives the metrics of every stage; a context manager.

    On a terminal it shows a progress bar with rate and time left, else a plain line now and then.
    """

    def __init__(self, folder: Path, mode: WandbMode, project: str, config: dict[str, Any]) -> None:
        self._console = Console(file=sys.stderr)
        self._bar = Progress(
            TextColumn("{task.description:<12}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[note]}"), TimeRemainingColumn(), console=self._console, transient=True,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._printed: dict[str, float] = {}
        self._started: dict[str, tuple[float, int]] = {}
        self._folder, self._wandb = folder, (mode, project, config)
        self._jsonl: IO[str] | None = None  # opened by the first record: only rank 0 writes any
        self._run: Any = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()
        if self._jsonl is not None:
            self._jsonl.close()
        if self._run is not None:
            self._run.finish(exit_code=0 if error is None else 1)

    def log(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        """One record, flushed at once, so that a killed run keeps its curves."""
        if self._jsonl is None:
            self._open()
        assert self._jsonl is not None
        self._jsonl.write(json.dumps({"stage": stage, "step": step, "time": time.time(), **metrics}) + "\n")
        self._jsonl.flush()
        if self._run is not None:
            self._run.log({f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in metrics.items()}})

    def table(self, stage: str, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table in W&B; its numbers are in the run folder already, so nothing is written without W&B."""
        if self._jsonl is None:
            self._open()
        if self._run is not None:
            import wandb

            self._run.log({f"{stage}/{name}": wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._jsonl = (self._folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._run = _start_wandb(self._folder, *self._wandb)

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show how far a stage is."""
        if self._console.is_terminal:
            if stage not in self._tasks:
                self._tasks[stage] = self._bar.add_task(stage, total=total, note=note)
            self._bar.update(self._tasks[stage], completed=done, note=note)
            return
        now = time.monotonic()
        begun, first = self._started.setdefault(stage, (now, done))
        if now - self._printed.get(stage, -60.0) >= 15 or done == total:
            self._printed[stage] = now
            left = (now - begun) / (done - first) * (total - done) if done > first else None
            ends = f", {left:.0f} s left" if left else ""
            print(f"{stage}: {done}/{total} {note}{ends}", file=sys.stderr, flush=True)


def _start_wandb(folder: Path, mode: WandbMode, project: str, config: dict[str, Any]) -> Any:
    """Start or continue this folder's W&B run; `offline` makes no network call."""
    if mode == "off":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    if mode == "offline":
        os.environ["WANDB_ERROR_REPORTING"] = "false"
    import wandb

    id_file = folder / "wandb.id"
    if not id_file.exists():  # under a sweep's agent the run has its id already
        write_text(id_file, os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
    run_id = id_file.read_text()
    settings = wandb.Settings(console="off", silent=True)
    return wandb.init(
        mode=mode, project=project, id=run_id, resume="allow", dir=str(folder),
        config={**config, "llmnas_version": version("llmnas"), "code_version": code_version()}, settings=settings,
    )  # fmt: skip


def code_version(folder: Path | None = None) -> str:
    """Commit of the checkout that this code runs from, with `-dirty` where tracked files differ; else `unknown`."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    command = [git, "-C", str(folder or Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records in order of (stage, step); of a step logged twice (after a restart) the last counts.

    A line cut off by a kill is left out.
    """
    found: dict[tuple[str, int, str], dict[str, Any]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.endswith("}"):
                record = json.loads(line)
                kind = "train" if "train_loss" in record or "skipped_steps" in record else "eval"
                found[record["stage"], record["step"], kind] = record
    return [found[key] for key in sorted(found)]
