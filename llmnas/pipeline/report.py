"""Gather what the stages left in the run folder into report.html and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmnas.cost import count_params
from llmnas.files import read_json
from llmnas.pareto import Archive
from llmnas.pipeline.context import Context
from llmnas.pipeline.retrain import verdict
from llmnas.report.html import Table, write_report
from llmnas.report.plots import curves_png, front_png
from llmnas.tracking import read_metrics

_FRONT_COLUMNS = ("architecture", "val loss (nats)", "perplexity", "parameters", "MFLOPs/token", "hidden", "layers")


def front_table(archive: Archive) -> Table:
    """The Pareto front, best loss first."""
    rows = []
    for e in sorted(archive.front(), key=lambda e: e.metrics["val_loss"]):
        m = e.metrics
        error = f" ± {m['val_loss_error']:.4f}" if m.get("val_loss_error") else ""
        rows.append((
            e.arch.id, f"{m['val_loss']:.4f}{error}", f"{m['perplexity']:.2f}", f"{int(m['params']):,}",
            f"{m['flops_per_token'] / 1e6:.2f}", str(e.arch.hidden_size), str(e.arch.depth),
        ))  # fmt: skip
    note = f"{len(archive)} architectures evaluated with the supernet's weights; ± is one standard error."
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
    spent = result["cpu_seconds"]
    parts = [f"{name} {spent[name]:,.0f}" for name in ("supernet", "search") if spent[name]]
    if None not in spent["stand_alone"]:
        parts.append(f"the {len(spent['stand_alone'])} stand-alone trainings {sum(spent['stand_alone']):,.0f}")
    note += f" CPU seconds: {', '.join(parts)}."
    return Table(
        "Does the supernet rank as stand-alone training does?", ("score", "tau", "interval", "rho"), rows, note
    )


def tables(context: Context, archive: Archive) -> list[Table]:
    """Every table whose stage has run."""
    run = context.run
    found = [front_table(archive)]
    if run.result("retrain").exists():
        found.append(comparison_table(read_json(run.result("retrain"))))
    if run.result("correlate").exists():
        found.append(correlation_table(read_json(run.result("correlate"))))
    return found


def report(context: Context) -> tuple[Path, list[Table]]:
    """Write `report.html`, `front.png` and `curves.png`; returns the report and its tables."""
    config, run = context.config, context.run
    space = config.space
    archive = Archive.load(run.require(run.evaluations, "search"))
    records = read_metrics(run.metrics)
    summary = {
        "architectures in the space": f"{space.size():,}",
        "smallest": f"{count_params(space.smallest(), space.base).total:,} parameters",
        "largest": f"{count_params(space.largest(), space.base).total:,} parameters",
        "data": config.data.source,
        "search": f"{config.search.strategy}, {len(archive)} evaluations",
        "seed": str(config.seed),
    }
    found = tables(context, archive)
    objectives = dict(archive.objectives)
    write_report(
        run.report, title=config.name, space_summary=summary, evaluations=archive.evaluations,
        front=archive.front(), objectives=objectives, records=records, tables=found,
    )  # fmt: skip
    if len(objectives) > 1:
        front_png(run.path / "front.png", archive.evaluations, archive.front(), objectives)
    curves_png(run.path / "curves.png", records)
    archive.close()
    run.record("report")
    return run.report, found
