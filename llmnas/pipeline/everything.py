"""The whole way from text to an exported model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmnas.export import ExportReport
from llmnas.pipeline.context import Context
from llmnas.pipeline.export import export, exported
from llmnas.pipeline.prepare import prepare
from llmnas.pipeline.report import report
from llmnas.pipeline.retrain import retrain
from llmnas.pipeline.search import search_supernet
from llmnas.pipeline.train import train_supernet
from llmnas.report.html import Table


@dataclass(frozen=True)
class Result:
    """What `llmnas run` shows at its end."""

    tables: list[Table]
    report: Path
    export: Path
    exported: ExportReport | None


def run_everything(context: Context) -> Result:
    """Prepare, train, search, retrain, export, report; finished stages are not repeated."""
    prepare(context)
    train_supernet(context)
    search_supernet(context).close()
    found = retrain(context)["found"]
    target = context.run.export(found)
    done = None if exported(context) else export(context, force=target.exists())
    path, tables = report(context)
    return Result(tables, path, target, done)
