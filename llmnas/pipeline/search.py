"""Search the trained supernet."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from llmnas.evaluate.evaluator import Evaluator
from llmnas.files import write_json
from llmnas.pareto import Archive, Evaluation
from llmnas.pipeline.context import Context
from llmnas.search import search
from llmnas.space import Architecture
from llmnas.train.engine import set_threads, start_processes


def search_supernet(context: Context) -> Archive:
    """Write `evaluations.sqlite` and `pareto.json`; evaluations that are stored are not repeated."""
    config, run, tracker = context.config, context.run, context.tracker
    options = config.search
    set_threads(config.train, start_processes())
    windows, bytes_per_token = context.windows(options.windows)
    started = time.process_time()
    measured: list[Architecture] = []
    evaluator = Evaluator(context.supernet(), windows, options.sample, bytes_per_token, config.budget.workload)

    def evaluate(archs: Sequence[Architecture]) -> list[dict[str, float]]:
        measured.extend(archs)
        return evaluator(archs)

    def progress(archive: Archive) -> None:
        best = min((e.metrics.get("val_loss", math.inf) for e in archive.evaluations), default=math.inf)
        tracker.progress("search", len(archive), options.evaluations, f"{options.strategy}, best loss {best:.3f}")

    archive = search(
        config.space, evaluate, options.strategy, dict(options.objectives), config.budget, dict(options.constraints),
        options.evaluations, config.seed, archive_path=run.evaluations, options=dict(options.options),
        batch=options.batch, on_progress=progress,
    )  # fmt: skip
    front = archive.front()
    write_json(run.pareto, [_plain(evaluation) for evaluation in front])
    cpu_seconds = run.recorded("search").get("cpu_seconds")
    if measured:  # evaluations cost about the same each: those of this start stand for the ones before
        cpu_seconds = (time.process_time() - started) * len(archive) / len(measured)
    run.record("search", evaluations=len(archive), front=len(front), cpu_seconds=cpu_seconds)
    return archive


def _plain(evaluation: Evaluation) -> dict[str, object]:
    return {"id": evaluation.arch.id, "metrics": evaluation.metrics, "architecture": evaluation.arch.to_dict()}


def chosen(archive: Archive) -> Evaluation:
    """The architecture to build: the lowest loss on the front (all of it is within budget and constraints)."""
    return min(archive.front(), key=lambda e: (e.metrics["val_loss"], e.metrics["params"]))
