"""Gather what the stages left in the run folder into report.html and pictures, once or while a run goes on."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmnas.cost import count_params
from llmnas.errors import UserError
from llmnas.files import read_json
from llmnas.pareto import Constraints, Evaluation, Objectives, front, read_archive
from llmnas.pipeline.context import Context
from llmnas.pipeline.retrain import verdict
from llmnas.report.findings import Findings, Table
from llmnas.report.html import write_report
from llmnas.report.plots import curves_png, front_png
from llmnas.report.serve import ReportServer
from llmnas.tracking import read_metrics

_FRONT_COLUMNS = ("architecture", "val loss (nats)", "perplexity", "parameters", "MFLOPs/token", "hidden", "layers")
_CORRELATION = ("supernet_loss", "stand_alone_loss", "params", "agreement")  # what the page draws


def front_table(front: Sequence[Evaluation], evaluated: int) -> Table:
    """The Pareto front, best loss first, of so many evaluations."""
    rows = []
    for e in sorted(front, key=lambda e: e.metrics["val_loss"]):
        m = e.metrics
        error = f" ± {m['val_loss_error']:.4f}" if m.get("val_loss_error") else ""
        rows.append((
            e.arch.id, f"{m['val_loss']:.4f}{error}", f"{m['perplexity']:.2f}", f"{int(m['params']):,}",
            f"{m['flops_per_token'] / 1e6:.2f}", str(e.arch.hidden_size), str(e.arch.depth),
        ))  # fmt: skip
    note = f"{evaluated} architectures evaluated with the supernet's weights; ± is one standard error."
    return Table("Pareto front", _FRONT_COLUMNS, rows, note)


def comparison_table(result: dict[str, Any]) -> Table:
    """Stand-alone training of the found and the hand-designed networks."""
    rows = []
    for name, runs in result["runs"].items():
        losses = [r["val_loss"] for r in runs]
        mean = sum(losses) / len(losses)
        perplexity = sum(r["perplexity"] for r in runs) / len(runs)
        spread = f" ({min(losses):.4f} to {max(losses):.4f})" if len(losses) > 1 else ""
        rows.append((name, f"{runs[0]['params']:,}", f"{mean:.4f}{spread}", f"{perplexity:.2f}", str(len(runs))))
    verdicts = "; ".join(f"found against {c['against']}: {verdict(c)}" for c in result["comparisons"])
    columns = ("network", "parameters", "val loss (nats)", "perplexity", "seeds")
    note = f"Trained alone on the same tokens with paired seeds. 95 % interval of the difference: {verdicts}."
    return Table("Found against hand-designed", columns, rows, note)


def correlation_table(result: dict[str, Any]) -> Table:
    """Rank agreement with stand-alone training."""
    rows = [
        (name, f"{a['tau']:.3f}", f"[{a['low']:.3f}, {a['high']:.3f}]", f"{a['spearman']:.3f}")
        for name, a in result["agreement"].items()
    ]
    note = f"{len(result['params'])} networks within one parameter band, trained alone; 95 % bootstrap interval."
    return Table(
        "Does the supernet rank as stand-alone training does?", ("score", "tau", "interval", "rho"), rows, note
    )


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
            files = (run.metrics, *(run.result(stage) for stage in ("retrain", "correlate", "ladder")))
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
            "data": config.data.source,
            "search": f"{config.search.strategy}, {len(self._evaluations)} evaluations, seed {config.seed}",
        }
        if best:
            lowest = min(best, key=lambda e: e.metrics["val_loss"])
            summary["lowest loss"] = f"{lowest.metrics['val_loss']:.4f} nats ({lowest.arch.id})"
        tables = [front_table(best, len(self._evaluations))]
        correlation = None
        if run.result("retrain").exists():
            tables.append(comparison_table(read_json(run.result("retrain"))))
        if run.result("correlate").exists():
            found = read_json(run.result("correlate"))
            tables.append(correlation_table(found))
            correlation = {name: found[name] for name in _CORRELATION}
        return Findings(
            title=config.name, summary=summary, evaluations=tuple(self._evaluations), objectives=objectives,
            constraints=constraints, records=read_metrics(run.metrics), tables=tables, correlation=correlation,
            ladder=read_json(run.result("ladder")) if run.result("ladder").exists() else (),
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
        return read_archive(path, number) if path.exists() else ({}, {}, [])


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
