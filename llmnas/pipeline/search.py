"""Search the trained supernet, by one process or by all of a launch."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from llmnas.archive import Archive
from llmnas.cost import count_params
from llmnas.errors import UserError
from llmnas.evaluate.evaluator import Evaluator, spread
from llmnas.evaluate.halving import Halving, rungs
from llmnas.evaluate.providers import with_providers
from llmnas.files import read_as, write_json
from llmnas.pareto import Evaluation
from llmnas.pipeline.context import Context
from llmnas.pipeline.decide import WINDOWS, contenders, decide
from llmnas.pipeline.metrics import providers
from llmnas.pipeline.pace import SPEED, Pace
from llmnas.pipeline.pruned import beginnings, layer_scores
from llmnas.pipeline.results import Decoded, search_facts
from llmnas.pipeline.stores import evaluation_identity, measured_how
from llmnas.pipeline.team import Team, preempted
from llmnas.pipeline.watched import evaluations_left, watched
from llmnas.runs import RunFolder
from llmnas.search import Search, search
from llmnas.space import Architecture
from llmnas.train.preemption import Preemption
from llmnas.train.processes import Processes
from llmnas.train.threads import set_threads

_CUTS = 16


def search_supernet(context: Context, evaluations: int | None = None) -> Archive:
    """Write `evaluations.sqlite`, `pareto.json` and `decision.json`; evaluations that are stored are not repeated.

    What differentiable search has decoded in this run, and cuts of a pretrained model by the importance of its layers,
    are evaluated first. Under a launcher this is rank 0's part, and
    `help_search` that of the others.

    Args:
        evaluations: stop at so many; None for the config's.

    Raises:
        RunError: another process of the launch is gone.
        Preempted: SIGTERM came; all finished evaluations are stored.
    """
    most = context.config.search.evaluations if evaluations is None else evaluations
    with Preemption() as preemption, _processes(context) as processes:
        return _search(context, most, processes, preemption)


@contextlib.contextmanager
def _processes(context: Context) -> Iterator[Processes]:
    """Those of the launch, watched, each with its threads set."""
    with watched(context, evaluations_left) as (processes, pulse):
        set_threads(context.config.train, processes, context.run.checkpoints)
        pulse.at("search")
        yield processes


def _search(context: Context, most: int, processes: Processes, preemption: Preemption) -> Archive:
    config, run, tracker = context.config, context.run, context.tracker
    options = config.search
    asked: dict[str, Any] = {
        "space": config.space, "strategy": options.strategy, "objectives": dict(options.objectives),
        "budget": config.budget, "constraints": dict(options.constraints), "seed": config.seed,
        "archive_path": run.evaluations, "options": dict(options.options),
        "first": known(context), "evaluation": measured_how(config),
    }  # fmt: skip
    run.unseal_evaluations()
    if run.evaluations.exists():  # refuse another search's before minutes of measuring
        Search(**asked).close()
    evaluator, team = _measuring(context, processes, preemption)
    pace, started = Pace(team.size), time.process_time()
    sample, halving = len(evaluator.chosen), options.halving

    seen, best = 0, math.inf

    def progress(archive: Archive) -> None:
        nonlocal seen, best
        new, seen = archive.since(seen), len(archive)
        best = min([best, *(e.metrics["val_loss"] for e in new if e.failure is None)])
        tracker.progress("search", len(archive), most, f"{options.strategy}, best loss {best:.3f}")

    with team:
        # by rank 0 alone: latencies that are measured at the same time disturb each other
        extra = providers(config, run, context.own_metrics)
        measure = Halving(
            team, evaluator.metrics, with_providers(lambda archs: [{} for _ in archs], extra),
            dict(options.objectives), dict(options.constraints),
            rungs(sample, halving.first, halving.keep) if halving else [sample], halving.keep if halving else 1.0,
        )  # fmt: skip
        archive = search(
            evaluate=pace.timed(measure), evaluations=most, on_progress=progress, batch=options.batch, **asked
        )
    team.forget()
    front = write_front(run, archive)
    before = search_facts(run)
    cpu_seconds = before.get("cpu_seconds")
    if pace.networks:  # evaluations cost about the same each: those of this start stand for the ones before
        spent = time.process_time() - started + team.helpers_cpu
        cpu_seconds = spent * len(archive) / pace.networks
    more, _ = context.windows(WINDOWS * options.windows)
    racers = contenders(archive)

    def losses(i: int, places: np.ndarray) -> np.ndarray:
        if preemption.requested:
            raise preempted()
        return evaluator.losses(racers[i].arch, more[places])

    # not by what this start evaluated: the one before may have been stopped in the race
    if racers and (before.get("evaluations") != len(archive) or not run.decision.exists()):
        decide(context, archive, losses, len(more))
    if pace.networks:
        _track(context, archive)
    provenance = {provider.metric: provider.about() for provider in extra}
    if not pace.networks:  # what was measured before knows its noise
        provenance |= before.get("provenance", {})
    speed = pace.facts() or {name: found for name, found in dict[str, Any](before).items() if name in SPEED}
    if halving and pace.networks:
        speed |= {"dropped": measure.dropped, "windows_share": round(measure.windows / pace.networks / sample, 4)}
    windows = len(evaluator.reference)
    run.record("search", evaluations=len(archive), front=len(front), provenance=provenance, cpu_seconds=cpu_seconds,
        windows=windows, windows_missing=options.windows - windows, **speed)  # fmt: skip
    return archive


def help_search(context: Context) -> None:
    """What every rank but 0 does in a search: measure what rank 0 sends.

    Raises:
        RunError: rank 0 is gone.
        Preempted: SIGTERM came to a process of the launch.
    """
    with Preemption() as preemption, _processes(context) as processes:
        _, team = _measuring(context, processes, preemption)
        team.serve()


def _measuring(context: Context, processes: Processes, preemption: Preemption) -> tuple[Evaluator, Team]:
    """This process's evaluator, and the team of all processes of the launch. Collective."""
    config = context.config
    device = torch.device("cuda", processes.local_rank) if torch.cuda.is_available() else torch.device("cpu")
    evaluator = context.evaluator(device)
    halving, sample = config.search.halving, len(evaluator.chosen)
    if halving and halving.first >= sample:  # the config can only compare it with what it asks for
        raise UserError(
            f"search.halving.first = {halving.first} must be less than the {sample} windows of a candidate, all that "
            "the validation text has"
        )
    identity = evaluation_identity(context)
    team = Team(
        processes, evaluator.part, config.space.base, context.run.journals, identity, lambda: preemption.requested
    )
    return evaluator, team


def known(context: Context) -> list[Architecture]:
    """What a search begins with: what differentiable search has decoded, and cuts of a pretrained model.

    Of these under a budget the largest, where nothing but a measured metric limits them some of every size. They do not
    depend on the number of evaluations: a search may be continued with more.
    """
    config, found = context.config, decoded(context)
    if config.train.init_from is not None:
        cuts = beginnings(config.space, config.budget, layer_scores(context))
        if config.budget.limits():
            cuts.sort(key=lambda cut: -count_params(cut, config.space.base).total)
        else:
            cuts = [cuts[i] for i in spread(len(cuts))]
        found += cuts[:_CUTS]
    return list(dict.fromkeys(found))


def decoded(context: Context) -> list[Architecture]:
    """What `llmnas train --method darts` wrote, in the order of its search; empty for other supernets."""
    path = context.run.result("darts")
    if not path.exists():
        return []
    return [Architecture.from_dict(value) for value in read_as(path, Decoded)["architectures"]]


def write_front(run: RunFolder, archive: Archive) -> list[Evaluation]:
    """Write `pareto.json` and return what is in it."""
    front = archive.front()
    write_json(run.pareto, [_plain(evaluation) for evaluation in front], run.seal)
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
