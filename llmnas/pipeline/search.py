"""Search the trained supernet."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np

from llmnas.evaluate.evaluator import Evaluator
from llmnas.evaluate.providers import with_providers
from llmnas.files import read_json, write_json
from llmnas.pareto import Archive, Evaluation
from llmnas.pipeline.context import Context
from llmnas.pipeline.decide import WINDOWS, contenders, decide
from llmnas.pipeline.metrics import providers
from llmnas.runs import RunFolder
from llmnas.search import search
from llmnas.space import Architecture
from llmnas.train.engine import set_threads, start_processes


def search_supernet(context: Context, evaluations: int | None = None) -> Archive:
    """Write `evaluations.sqlite`, `pareto.json` and `decision.json`; evaluations that are stored are not repeated.

    What differentiable search has decoded in this run is evaluated first.

    Args:
        evaluations: stop at so many; None for the config's.
    """
    config, run, tracker = context.config, context.run, context.tracker
    options = config.search
    most = options.evaluations if evaluations is None else evaluations
    set_threads(config.train, start_processes())
    extra = providers(config, run, context.own_metrics)
    windows, bytes_per_token = context.windows(options.windows)
    started = time.process_time()
    measured: list[Architecture] = []
    evaluator = Evaluator(
        context.supernet(), windows, options.sample, bytes_per_token, config.budget.workload, context.calibration()
    )
    measure = with_providers(evaluator, extra)

    def evaluate(archs: Sequence[Architecture]) -> Sequence[Mapping[str, float]]:
        measured.extend(archs)
        return measure(archs)

    def progress(archive: Archive) -> None:
        best = min((e.metrics.get("val_loss", math.inf) for e in archive.evaluations), default=math.inf)
        tracker.progress("search", len(archive), most, f"{options.strategy}, best loss {best:.3f}")

    archive = search(
        config.space, evaluate, options.strategy, dict(options.objectives), config.budget, dict(options.constraints),
        most, config.seed, archive_path=run.evaluations, options=dict(options.options),
        batch=options.batch, first=decoded(context), on_progress=progress,
    )  # fmt: skip
    front = write_front(run, archive)
    cpu_seconds = run.recorded("search").get("cpu_seconds")
    if measured:  # evaluations cost about the same each: those of this start stand for the ones before
        cpu_seconds = (time.process_time() - started) * len(archive) / len(measured)
    more, _ = context.windows(WINDOWS * options.windows)
    racers = contenders(archive)

    def losses(i: int, places: np.ndarray) -> np.ndarray:
        return evaluator.losses(racers[i].arch, more[places])

    if racers and (measured or not run.decision.exists()):
        decide(context, archive, losses, len(more))
    if measured:
        _track(context, archive)
    provenance = {provider.metric: provider.provenance for provider in extra}
    run.record("search", evaluations=len(archive), front=len(front), provenance=provenance, cpu_seconds=cpu_seconds)
    return archive


def decoded(context: Context) -> list[Architecture]:
    """What `llmnas train --method darts` wrote, in the order of its search; empty for other supernets."""
    path = context.run.result("darts")
    if not path.exists():
        return []
    return [Architecture.from_dict(value) for value in read_json(path)["architectures"]]


def write_front(run: RunFolder, archive: Archive) -> list[Evaluation]:
    """Write `pareto.json` and return what is in it."""
    front = archive.front()
    write_json(run.pareto, [_plain(evaluation) for evaluation in front])
    return front


def _track(context: Context, archive: Archive) -> None:
    """The best validation loss in nats a token (what a sweep over searches minimises) and the front as a table."""
    front = archive.front()
    best = {"best_nats": min(e.metrics["val_loss"] for e in front)} if front and "val_loss" in front[0].metrics else {}
    context.tracker.log("search", len(archive), {**best, "front_size": float(len(front))})
    names = sorted(front[0].metrics) if front else []
    rows = [[e.arch.id, *(e.metrics.get(name) for name in names)] for e in front]
    context.tracker.table("search", "front", ["id", *names], rows)


def _plain(evaluation: Evaluation) -> dict[str, object]:
    return {"id": evaluation.arch.id, "metrics": evaluation.metrics, "architecture": evaluation.arch.to_dict()}
