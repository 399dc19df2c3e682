"""Take the best networks for a list of targets out of one supernet, by OFA's predictor or by an integer program."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llmnas.config import Config
from llmnas.cost import BudgetSampler, costs, sample
from llmnas.cost.budget import COSTS
from llmnas.cost.latency import BlockTable
from llmnas.cost.tables import reachable
from llmnas.errors import UserError
from llmnas.files import read_as, write_json
from llmnas.pipeline.context import Context
from llmnas.pipeline.latency import latency_phase, latency_table
from llmnas.pipeline.metrics import measured_on, providers
from llmnas.pipeline.results import Extracted
from llmnas.pipeline.stores import Evaluate, remembered, store_of
from llmnas.report.html import Table
from llmnas.rng import generator
from llmnas.search import Candidates, Problem
from llmnas.search.block_scores import BlockScores, chosen_cells, judged
from llmnas.search.mip import BlockCosts, Cell, Limit, budget_limits, cells, closed_form, measured_costs
from llmnas.search.ofa import extract as evolve
from llmnas.search.predictor import HeldOut, Predictor, split
from llmnas.space import Architecture, LayerSpec, SearchSpace

LOSS = "val_loss"
_HELD = 0.2


def extract(context: Context) -> dict[str, Any]:
    """Write `extract/METHOD.json`: for every target the best network found, predicted and really measured.

    Answers that are there already stay beside those of other targets.
    Every evaluation is kept in `extract/evaluations.sqlite`, which both methods share: what was measured once is not
    measured again, and an interrupted extraction goes on where it stopped.

    Raises:
        UserError: no target, one of a metric that has none, or one that no architecture meets.
    """
    config, run = context.config, context.run
    options = config.extract
    targets = [(name, limit) for name, limits in options.targets.items() for limit in limits]
    if not targets:
        raise UserError("extract.targets: none given; for instance --targets params=1000000,2000000")
    path = run.result("extract").with_name(f"{options.method}.json")
    earlier = _earlier(config, path, targets)
    metrics = _target_metrics(context)
    _require_reachable(context, targets)
    evaluator = context.evaluator()
    store = store_of(context, run.result("extract").with_name("evaluations.sqlite"), {LOSS: "min"})

    answer = remembered(store, evaluator)

    def measured(archs: Sequence[Architecture]) -> list[dict[str, float]]:
        """A few at a time: what is done is stored when the process dies."""
        rows: list[dict[str, float]] = []
        for first in range(0, len(archs), config.search.batch):
            rows += answer(archs[first : first + config.search.batch])
            context.tracker.progress("extract", len(rows), len(archs), f"{len(store)} networks in store")
        return rows

    try:
        method = _ofa if options.method == "ofa" else _mip
        about, predicted = method(context, targets, metrics, measured)
        rows = [
            _row(target, found, measured, metrics) | measured_on(config, target[:1])
            for target, found in zip(targets, predicted, strict=True)
        ]
        evaluations = len(store)
    finally:
        store.close()
    rows = [*earlier, *rows]
    result = {"method": options.method, "evaluations": evaluations, **about, "targets": rows}
    write_json(path, result, run.seal)
    run.record("extract", method=options.method, targets=len(rows), evaluations=evaluations)
    return result


def _earlier(config: Config, path: Path, targets: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    """The answers of this method to other targets; not latencies of other hardware."""
    rows: list[dict[str, Any]] = [dict(row) for row in read_as(path, Extracted)["targets"]] if path.exists() else []
    return [
        row
        for row in rows
        if (row["metric"], row["limit"]) not in targets
        and row.get("hardware") == measured_on(config, [row["metric"]]).get("hardware")
    ]


Prediction = tuple[Architecture, float, float]
"""(architecture, predicted loss, its standard deviation: NaN where the method gives none)."""


def _target_metrics(context: Context) -> Evaluate:
    """Architectures -> the metrics that targets may name; nothing is run on the supernet for them."""
    config = context.config
    space, workload = config.space, config.budget.workload
    closed = tuple(costs(space.smallest(), space.base, workload))
    other = [name for name in config.extract.targets if name not in closed]
    asked = config.model_copy(
        update={"search": config.search.model_copy(update={"objectives": dict.fromkeys(other, "min")})}
    )
    allowed = [*closed, "latency_ms", "prefill_latency_ms", "decode_latency_ms"]
    wrong = [name for name in other if name not in allowed]
    if wrong:
        raise UserError(f"extract.targets: {wrong[0]} has no targets; allowed: {', '.join(allowed)}")
    made = providers(asked, context.run, {}) if other else []

    def values(archs: Sequence[Architecture]) -> list[dict[str, float]]:
        rows: list[dict[str, float]] = [dict(costs(arch, space.base, workload)) for arch in archs]
        for provider in made:
            for row, value in zip(rows, provider.values(archs), strict=True):
                row[provider.metric] = value
        return rows

    return values


def _require_reachable(context: Context, targets: Sequence[tuple[str, float]]) -> None:
    """Refuse a target that nothing meets, before anything is measured: exactly for the costs that budgets limit."""
    config = context.config
    space, budget = config.space, config.budget
    least = {name: _least(context, name) for name, _ in targets}
    for name, limit in targets:
        if limit < least[name]:
            raise UserError(
                f"extract.targets.{name}: {limit:g} is below {least[name]:,.6g}, what the cheapest network needs"
            )
        if name in COSTS:
            low, high = budget.limits().get(name, (0.0, np.inf))
            if limit < low:
                raise UserError(f"extract.targets.{name}: {limit:g} is below budget.min_{name} = {low:,.6g}")
            within = replace(budget, **{f"max_{name}": min(limit, high)})  # type: ignore[arg-type]
            sample(space, generator(config.seed, "feasible"), within)


def _least(context: Context, name: str) -> float:
    """What no network of the space is below: 0 where only measuring every one could say.

    That of the smallest network would be too much: its kinds come first, but may take longer (ternary weights on a
    CPU) or have more parameters (MLGRU beside grouped queries).
    """
    space = context.config.space
    if name in COSTS:
        return reachable(space, name, context.config.budget.workload)[0]
    if not _is_sum(context.config):
        return 0.0
    tables = map(_costs_of_blocks(context, name).costs, cells(space))
    return min(
        table.fixed + depth * float(table.blocks[0, 1:].min()) for table in tables for depth in space.depth.choices
    )


def _ofa(
    context: Context, targets: Sequence[tuple[str, float]], metrics: Evaluate, measured: Evaluate
) -> tuple[dict[str, Any], list[list[Prediction]]]:
    """Measure random networks, judge and train the predictor, evolve on it."""
    config = context.config
    options, space = config.extract, config.space
    rng = generator(config.seed, "extract samples")
    drawn = BudgetSampler(space, config.budget).sample_many(rng, 4 * options.samples)
    archs = list(itertools.islice(dict.fromkeys(drawn), options.samples))
    values = [row[LOSS] for row in measured(archs)]
    alive = [i for i, value in enumerate(values) if np.isfinite(value)]
    if len(alive) < 10:
        raise UserError(f"extract: {len(alive)} different networks of the space and budget could be measured; needs 10")
    archs, values = [archs[i] for i in alive], [values[i] for i in alive]
    predictor, quality = _trained(context, archs, values)

    def predict(asked: Sequence[Architecture]) -> list[dict[str, float]]:
        means = predictor.predict(asked)[0]
        return [{**row, LOSS: float(mean)} for row, mean in zip(metrics(asked), means, strict=True)]

    candidates = Candidates(Problem(space, {LOSS: "min"}, {}, config.budget, config.seed))
    best = sorted(range(len(archs)), key=values.__getitem__)
    start = [*candidates.anchors(), *(archs[i] for i in best[: options.population // 4])]
    ranked = evolve(
        candidates, predict, lambda row: -row[LOSS], [{name: limit} for name, limit in targets], start,
        options.population, options.generations,
    )  # fmt: skip
    found: list[list[Prediction]] = []
    for (name, limit), ranking in zip(targets, ranked, strict=True):
        inside = [arch for arch in ranking[: 4 * options.verify] if metrics([arch])[0][name] <= limit]
        chosen = inside[: options.verify]
        means, deviations = predictor.predict(chosen) if chosen else (np.zeros(0), np.zeros(0))
        found.append([(a, float(m), float(d)) for a, m, d in zip(chosen, means, deviations, strict=True)])
    return {"samples": len(archs), "predictor": options.predictor, "held_out": quality._asdict()}, found


def _trained(context: Context, archs: list[Architecture], values: list[float]) -> tuple[Predictor, HeldOut]:
    """A predictor of these values, judged on a fifth of them held out; the stored one where it was told the same."""
    config, path = context.config, context.run.result("extract").with_name("predictor.safetensors")
    predictor = Predictor(config.space, config.extract.predictor, config.seed)
    if path.exists():
        stored = Predictor.load(context.run.check(path), config.space, LOSS)
        if stored.quality and stored.kind == predictor.kind and stored.was_told(archs, values):
            return stored, stored.quality
    train, held = split(len(archs), _HELD, config.seed)
    predictor.fit([archs[i] for i in train], [values[i] for i in train])
    quality = predictor.held_out([archs[i] for i in held], [values[i] for i in held])
    predictor.fit(archs, values)
    predictor.quality = quality
    predictor.save(path, LOSS, context.run.seal)
    return predictor, quality


def _mip(
    context: Context, targets: Sequence[tuple[str, float]], _metrics: Evaluate, measured: Evaluate
) -> tuple[dict[str, Any], list[list[Prediction]]]:
    """Score blocks, solve a program for every target, and say whether scores add up."""
    config = context.config
    options, space = config.extract, config.space
    tables = {name: _costs_of_blocks(context, name) for name in options.targets}
    chosen = chosen_cells(space, options.cells)
    scores = BlockScores.measure(space, chosen, measured, LOSS)
    always = budget_limits(space, config.budget)
    found = []
    for name, limit in targets:
        solutions = scores.best([*always, replace(tables[name], high=limit)], options.verify)
        found.append([(s.arch, s.score, float("nan")) for s in solutions])
    rng = generator(config.seed, "extract checks")
    drawn = BudgetSampler(space, config.budget).sample_many(rng, 40 * options.checks)
    inside = [arch for arch in dict.fromkeys(drawn) if np.isfinite(scores.predict(arch))]
    checks = [*inside[: options.checks], *dict.fromkeys(arch for rows in found for arch, _, _ in rows)]
    values = [row[LOSS] for row in measured(checks)]
    verdict = judged([scores.predict(arch) for arch in checks], values)
    about = {
        "cells": len(chosen),
        "cells_of_space": len(cells(space)),
        "additivity": verdict._asdict(),
        "verdict": verdict.message(),
    }
    return about, found


def _costs_of_blocks(context: Context, name: str) -> Limit:
    """A target's metric as a sum over blocks, without its limit."""
    config = context.config
    space, workload = config.space, config.budget.workload
    if name in costs(space.smallest(), space.base, workload):
        return Limit(name, lambda cell: closed_form(space, cell, name, workload))
    if not _is_sum(config):
        raise UserError(
            f"extract.targets.{name}: mip needs a latency that is a sum of measured blocks: hardware.device: this, "
            "hardware.method: table, no hardware.correction"
        )
    table: BlockTable = latency_table(config, context.run, latency_phase(config, name), workload)[0]

    return Limit(name, lambda cell: _summed(space, cell, table))


def _is_sum(config: Config) -> bool:
    """Whether a latency is the sum of a table of measured blocks."""
    hardware = config.hardware
    return not hardware or (hardware.device == "this" and hardware.method != "measure" and not hardware.correction)


def _summed(space: SearchSpace, cell: Cell, table: BlockTable) -> BlockCosts:
    """A cell's latency: what is outside of the blocks, and each block."""

    def block(_layer: int, spec: LayerSpec | None) -> float:
        return 0.0 if spec is None else table.block_ms(cell.hidden_size, spec)

    return measured_costs(space, cell, table.end_ms(cell.hidden_size), block)


def _row(
    target: tuple[str, float], found: Sequence[Prediction], measured: Evaluate, metrics: Evaluate
) -> dict[str, Any]:
    """What came out for one target: the best by measurement among those that were predicted best."""
    name, limit = target
    if not found:
        return {"metric": name, "limit": limit, "found": None}
    values = [row[LOSS] for row in measured([arch for arch, _, _ in found])]
    order = sorted(range(len(found)), key=lambda i: (not np.isfinite(values[i]), values[i]))
    rows = [
        {
            "id": found[i][0].id,
            "predicted": found[i][1],
            "deviation": found[i][2] if np.isfinite(found[i][2]) else None,
            "measured": values[i] if np.isfinite(values[i]) else None,
            "metrics": metrics([found[i][0]])[0],
            "architecture": found[i][0].to_dict(),
        }
        for i in order
    ]
    return {"metric": name, "limit": limit, "found": rows[0], "others": rows[1:]}


def extract_table(result: dict[str, Any]) -> Table:
    """One row a target; the note says how far predictions can be trusted."""
    rows = []
    for row in result["targets"]:
        target, best = f"{row['metric']} <= {row['limit']:,g}", row["found"]
        if best is None:
            rows.append((target, "none found", "", "", "", ""))
            continue
        predicted = f"{best['predicted']:.4f}"
        if best["deviation"] is not None:
            predicted += f" ± {1.96 * best['deviation']:.4f}"
        value = "failed" if best["measured"] is None else f"{best['measured']:.4f}"
        metric = f"{best['metrics'][row['metric']]:,.6g}"
        rows.append((target, best["id"], metric, f"{best['metrics']['params']:,.0f}", predicted, value))
    if result["method"] == "ofa":
        quality = result["held_out"]
        note = (
            f"A predictor of {result['samples']} networks; on {quality['size']} held out: tau {quality['tau']:.2f}, "
            f"rmse {quality['rmse']:.4f} nats, {quality['coverage']:.0%} within its 95 % interval."
        )
    else:
        note = f"{result['verdict']}. {result['cells']} of {result['cells_of_space']} widths took part."
    note += f" {result['evaluations']} networks measured in all."
    columns = ("target", "architecture", "has", "parameters", "predicted loss", "measured loss")
    return Table(f"Extracted by {result['method']}", columns, rows, note)
