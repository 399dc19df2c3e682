"""Metrics: always to metrics.jsonl, to W&B as the config says, and to the terminal."""

from __future__ import annotations

import io
import json
import logging
import math
import netrc
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from llmnas.errors import UserError
from llmnas.extras import EXTRAS, absent, require
from llmnas.files import naming, one_line, parse_json, read_bytes, read_text, write_text

WandbMode = Literal["auto", "off", "offline", "online"]
Used = Literal["off", "offline", "online"]
_OF_ENVIRONMENT: dict[str, Used] = {
    "online": "online", "run": "online", "shared": "online",
    "offline": "offline", "dryrun": "offline", "disabled": "off",
}  # fmt: skip
_LOG = logging.getLogger(__name__)
_WITHOUT = "W&B: %s; going on without it, metrics.jsonl has every number"
MOST_METRICS = 1 << 28  # bytes that are read of metrics.jsonl


class Tracker:
    """Receives the metrics of every stage; a context manager.

    On a terminal it shows a progress bar with rate and time left, else a plain line now and then.
    """

    def __init__(self, folder: Path, mode: WandbMode, project: str, config: dict[str, Any]) -> None:
        self._console = Console(file=sys.stderr)
        self._bar = Progress(
            TextColumn("{task.description:<12}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[note]}", markup=False), TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
            console=self._console, transient=True,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._printed: dict[str, float] = {}
        self._started: dict[str, tuple[float, int, int]] = {}  # since when, counted from where, to where
        self._folder, self._mode, self._wandb = folder, wandb_mode(mode), (project, config)
        self._jsonl: IO[str] | None = None  # opened by the first record: only rank 0 writes any
        self._run: Any = None

    def __enter__(self) -> Self:
        if self._mode == "online" and os.environ.get("RANK", "0") == "0":
            require_account()
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._bar.stop()
        if self._jsonl is not None:
            self._jsonl.close()
        self._tell_wandb(lambda run: run.finish(exit_code=0 if error is None else 1))

    def log(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        """One record, flushed at once, so that a killed run keeps its curves."""
        if self._jsonl is None:
            self._open()
        assert self._jsonl is not None
        with naming(self._folder / "metrics.jsonl"):
            self._jsonl.write(json.dumps({"stage": stage, "step": step, "time": time.time(), **metrics}) + "\n")
            self._jsonl.flush()
        record = {f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in metrics.items()}}
        self._tell_wandb(lambda run: run.log(record))

    def table(self, stage: str, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table in W&B; its numbers are in the run folder already, so nothing is written without W&B."""
        if self._jsonl is None:
            self._open()
        if self._run is not None:
            import wandb

            table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
            self._tell_wandb(lambda run: run.log({f"{stage}/{name}": table}))

    def _tell_wandb(self, tell: Callable[[Any], None]) -> None:
        """Hand something to W&B where it is used; where it fails, it is said and left out from then on."""
        if self._run is None:
            return
        try:
            tell(self._run)
        except Exception as error:  # noqa: BLE001 (its service, once gone, raises errors of every kind)
            _LOG.warning(_WITHOUT, _why(error))
            self._run = None

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._jsonl = _open_for_records(self._folder / "metrics.jsonl")
        self._run = _start_wandb(self._folder, self._mode, *self._wandb)

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show how far a stage is: a bar that becomes a line when the stage ends, or a line every 15 seconds."""
        now = time.monotonic()
        begun, first, last = self._started.get(stage, (now, done, done))
        if done < last:  # counted anew
            begun, first = now, done
        self._started[stage] = begun, first, done
        rate = (done - first) / (now - begun) if now > begun else 0.0
        if self._console.is_terminal:
            if done < total:
                if stage not in self._tasks:
                    self._tasks[stage] = self._bar.add_task(stage, total=total, note="", rate="")
                self._bar.update(self._tasks[stage], completed=done, note=one_line(note), rate=_per_second(rate))
                return
            if stage in self._tasks:
                self._bar.remove_task(self._tasks.pop(stage))
        elif now - self._printed.get(stage, -math.inf) < 15 and done < total:
            return
        self._printed[stage] = now
        facts = [f"{stage}: {done}/{total}", note, _per_second(rate)]
        if done < total:
            facts.append(f"{_duration((total - done) / rate)} left" if rate else "")
        self._bar.console.print(one_line(", ".join(filter(None, facts))), highlight=False, markup=False, soft_wrap=True)


def _per_second(rate: float) -> str:
    """3.2 a second, or 4.1 s each where one takes longer; nothing where it is not known yet."""
    if not rate:
        return ""
    return f"{rate:.1f} a second" if rate >= 1 else f"{1 / rate:.1f} s each"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _open_for_records(path: Path) -> IO[str]:
    """Open for appending; a line that a kill cut off is ended, so that it cannot swallow the next record."""
    stream = path.open("a+b")
    if stream.tell():
        stream.seek(-1, os.SEEK_END)
        if stream.read() != b"\n":
            stream.write(b"\n")
    return io.TextIOWrapper(stream, encoding="utf-8")


def wandb_mode(asked: WandbMode) -> Used:
    """How W&B is used: as asked, but for WANDB_MODE; `auto` is online in a sweep, else offline where installed.

    Raises:
        UserError: WANDB_MODE is no mode of W&B, or W&B is asked for and not installed.
    """
    said = os.environ.get("WANDB_MODE", "")
    if said and said not in _OF_ENVIRONMENT:
        raise UserError(f"WANDB_MODE: {said!r} is no mode of W&B; allowed: {', '.join(_OF_ENVIRONMENT)}")
    if asked == "off":
        return asked
    plain: Used = ("online" if os.environ.get("WANDB_SWEEP_ID") else "offline") if asked == "auto" else asked
    used = _OF_ENVIRONMENT.get(said, plain)
    if used == "offline" and asked == "auto" and absent(EXTRAS["wandb"]):
        return "off"
    if used != "off":
        require("wandb", use=f"tracking.wandb: {asked}")
    return used


def require_account() -> None:
    """Before any work: `UserError` where W&B would not know whose run it is, or to which project a sweep belongs."""
    import wandb

    sweep = os.environ.get("WANDB_SWEEP_ID")
    if sweep and not os.environ.get("WANDB_PROJECT"):
        raise UserError(
            f"W&B: sweep {sweep} without a project; type `wandb agent ENTITY/PROJECT/{sweep}`, "
            "or `export WANDB_PROJECT=NAME`"
        )
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or str(wandb.Settings().base_url)).hostname or ""
    given = any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))
    if not given and not _logged_in(host):
        raise UserError(
            f"W&B: no API key for {host}; type `wandb login` or `export WANDB_API_KEY=KEY`, "
            "or `export WANDB_MODE=offline` to go on without the network"
        )


def _logged_in(host: str) -> bool:
    """Whether the file of logins, where `wandb login` writes, has this host; True where only W&B can tell."""
    settings = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser() / "settings"
    if settings.is_file() and not os.environ.get("WANDB_BASE_URL"):
        return True  # may name another server
    named = os.environ.get("NETRC")
    places = [Path(named).expanduser()] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    try:
        return any(host in netrc.netrc(place).hosts for place in places if place.is_file())
    except (netrc.NetrcParseError, OSError):
        return True  # W&B has the last word on what it can read


def _start_wandb(folder: Path, mode: Used, project: str, config: dict[str, Any]) -> Any:
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
    run_id = _run_id(id_file)
    settings = wandb.Settings(console="off", silent=True)
    try:
        return wandb.init(
            mode=mode, project=project, id=run_id, resume="allow", dir=str(folder),
            config={**config, "llmnas_version": version("llmnas"), "code_version": code_version()}, settings=settings,
        )  # fmt: skip
    except wandb.errors.UsageError as error:
        why = str(error).split(".")[0]
        raise UserError(
            f"W&B: {why}; type `wandb login`, or `export WANDB_MODE=offline` to go on without the network"
        ) from None
    except (wandb.errors.Error, OSError) as error:  # its folder cannot be written, its service does not start
        _LOG.warning(_WITHOUT, _why(error))
        return None


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return one_line(f"{error.filename}: {error.strerror}")
    return one_line(" ".join(str(error).split()) or type(error).__name__)


def _run_id(path: Path) -> str:
    """The id of this folder's W&B run; `UserError` where the file holds something else."""
    found = read_text(path, 1000)
    if not re.fullmatch(r"[\w.-]{1,128}", found):
        raise UserError(f"{path}: damaged: not the id of a W&B run; delete it to begin a new one")
    return found


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

    A line cut off by a kill, or damaged, is left out.
    """
    found: dict[tuple[str, int, str], dict[str, Any]] = {}
    for line in read_bytes(path, MOST_METRICS).split(b"\n") if path.exists() else ():
        record = _record(line)
        if record is not None:
            kind = "train" if "train_loss" in record or "skipped_steps" in record else "eval"
            found[record["stage"], record["step"], kind] = record
    return [found[key] for key in sorted(found)]


def _record(line: bytes) -> dict[str, Any] | None:
    """What a line of metrics.jsonl says, None where it is no record: finite or not, every value is a number."""
    try:
        record = parse_json(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("stage"), str) or type(record.get("step")) is not int:
        return None
    numbers = {name: value for name, value in record.items() if type(value) in (int, float)}
    return {**numbers, "stage": record["stage"]}
