"""Gather what the stages left in the run folder into report.html and pictures, once or while a run goes on."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from llmnas.archive import read_archive
from llmnas.cost import count_params
from llmnas.errors import UserError
from llmnas.pareto import Constraints, Evaluation, Objectives, front
from llmnas.pipeline.context import Context
from llmnas.pipeline.results import correlated, laddered
from llmnas.pipeline.tables import search_tables, stage_tables
from llmnas.report.findings import Findings, Table
from llmnas.report.html import write_report
from llmnas.report.plots import curves_png, front_png
from llmnas.report.serve import ReportServer
from llmnas.runs import RunFolder
from llmnas.space import Architecture
from llmnas.tracking import read_metrics

# what the page draws of a stage's result
_CORRELATION = ("supernet_loss", "stand_alone_loss", "params", "agreement")
_SHOWN = ("val_loss", "perplexity", "params", "flops_per_token")  # of every evaluation
_RUNG = ("depth", "kept", "params", "loss", "first_layers", "even_layers", "alone")


class Gatherer:
    """Reads what a run folder holds, and again; evaluations that were read before are not read twice.

    Changes nothing in the folder, so it may look at a run that is going on. Safe to call from several threads.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._evaluations: list[Evaluation] = []
        self._searches = 0  # how often another search took the place of the one that was read
        self._state: object = None
        self._findings: Findings | None = None

    def findings(self) -> Findings:
        """What is there now, the same object as before where nothing changed.

        Before the search has begun, its evaluations are none.
        """
        with self._lock:
            run = self._context.run
            search = self._read()
            files = (run.metrics, run.decision, *(run.result(stage) for stage in ("retrain", "correlate", "ladder")))
            state = (search, self._searches, len(self._evaluations), [_stamp(path) for path in files])
            if self._findings is None or state != self._state:
                self._state, self._findings = state, self._gather(*search)
            return self._findings

    def _gather(self, objectives: Objectives, constraints: Constraints) -> Findings:
        config, run = self._context.config, self._context.run
        space = config.space
        best = front(self._evaluations, objectives, constraints)
        smallest, largest = (count_params(arch, space.base) for arch in (space.smallest(), space.largest()))
        summary = {
            "architectures in the space": f"{space.size():,}",
            "sizes": f"{smallest.total:,} to {largest.total:,} parameters",
            "data": ", ".join(store.path for store in config.data.tokens) or config.data.source,
            "search": f"{config.search.strategy}, {len(self._evaluations)} evaluations, seed {config.seed}",
        }
        if best:
            lowest = min(best, key=lambda e: e.metrics["val_loss"])
            summary["lowest loss"] = f"{lowest.metrics['val_loss']:.4f} nats ({lowest.arch.id})"
        tables = [
            *search_tables(run, best, self._evaluations, [*objectives, *constraints], constraints),
            *stage_tables(run),
        ]
        return Findings(
            title=config.name, summary=summary, evaluations=tuple(self._evaluations), objectives=objectives,
            constraints=constraints, records=read_metrics(run.metrics), tables=tables, correlation=_correlation(run),
            ladder=_ladder(run),
        )  # fmt: skip

    def _read(self) -> tuple[Objectives, Constraints]:
        """Read what is new; objectives and constraints of the archive, of the config where there is none yet."""
        wanted, known = self._context.config.search, self._evaluations
        objectives, constraints, new = self._after(max(len(known) - 1, 0))
        if known and (not new or new[0] != known[-1]):  # not the search that was there before
            known.clear()
            self._searches += 1
            objectives, constraints, new = self._after(0)
        known += new[1:] if known else new
        return objectives or wanted.objectives, constraints

    def _after(self, number: int) -> tuple[Objectives, Constraints, list[Evaluation]]:
        path = self._context.run.evaluations
        if not path.exists():
            return {}, {}, []
        objectives, constraints, found = read_archive(path, number)
        for evaluation in found:
            missing = [name for name in _SHOWN if evaluation.failure is None and name not in evaluation.metrics]
            if missing:
                raise UserError(
                    f"{path}: evaluation {evaluation.index} has no {missing[0]}: not made by `llmnas search`"
                )
        return objectives, constraints, found


def _correlation(run: RunFolder) -> dict[str, Any] | None:
    """What the `correlate` stage found, with the networks' identities."""
    if not run.result("correlate").exists():
        return None
    found = correlated(run)
    ids = [Architecture.from_dict(arch).id for arch in found["architectures"]]
    return {"id": ids, **{name: dict(found)[name] for name in _CORRELATION}}


def _ladder(run: RunFolder) -> list[dict[str, Any]]:
    """The rungs that the `ladder` stage found, each with the number of layers that there are to keep."""
    if not run.result("ladder").exists():
        return []
    return [
        {"layers": len(rung["architecture"]["layers"]), **{name: dict(rung)[name] for name in _RUNG}}
        for rung in laddered(run)["rungs"]
    ]


def _stamp(path: Path) -> tuple[int, int]:
    """(time of the last change, size), zeros where there is no such file."""
    if not path.exists():
        return 0, 0
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def report(context: Context) -> tuple[Path, list[Table]]:
    """Write `report.html`, `front.png` and `curves.png`; returns the report and its tables."""
    run = context.run
    run.require(run.evaluations, "search")
    findings = Gatherer(context).findings()
    write_report(run.report, findings)
    objectives = findings.objectives
    if len(objectives) > 1:
        best = front(findings.evaluations, objectives, findings.constraints)
        front_png(run.path / "front.png", findings.evaluations, best, objectives)
    curves_png(run.path / "curves.png", findings.records)
    run.record("report")
    return run.report, list(findings.tables)


def follow(context: Context, port: int) -> ReportServer:
    """A server that shows the run as it goes on; call its `serve_forever`. Reads the run folder, writes nothing."""
    if not context.run.path.is_dir():
        raise UserError(f"{context.run.path}: no such run folder; start the run first, or name its folder: --run-dir")
    return ReportServer(Gatherer(context).findings, port)
