"""Compare strategies on one supernet, or on a surrogate of a table of evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from llmnas.archive import Archive
from llmnas.config import Config
from llmnas.cost import costs
from llmnas.errors import UserError
from llmnas.evaluate.providers import Provider, with_providers
from llmnas.files import sha256, write_json
from llmnas.pareto import Evaluation
from llmnas.pipeline.context import Context
from llmnas.pipeline.metrics import providers
from llmnas.pipeline.stores import Evaluate, evaluation_identity, remembered, store_of
from llmnas.pipeline.table import read_table
from llmnas.report.html import Table
from llmnas.report.plots import Band, comparison_png
from llmnas.search import Search, options_of, search
from llmnas.search.compare import REPORTED, Comparison, compare
from llmnas.search.predictor import Predictor, split
from llmnas.space import Architecture

_ROWS = 2000  # of a table: a Gaussian process is cubic in them


def compare_strategies(context: Context, table: Path | None = None) -> dict[str, Any]:
    """Write `compare/result.json` and `compare/hypervolume.png`: every strategy's hypervolume against evaluations.

    All strategies and seeds share one store of evaluations, so no architecture is evaluated twice; every search has
    an archive of its own beside the result, so what was interrupted goes on. With a `table` (a search's
    `evaluations.sqlite`, or a `.csv.gz`) nothing is evaluated: a predictor that is trained on it stands for the
    supernet, and the result says how good it is.
    """
    config, run = context.config, context.run
    _require_comparable(config)
    folder = run.result("compare").parent
    about: dict[str, Any] = {"evaluated_by": "supernet"}
    extra: list[Provider] = []
    metrics = (*config.search.objectives, *config.search.constraints)
    how = evaluation_identity(context, metrics) if table is None else {"table": sha256(table)}

    def asked(strategy: str, seed: int) -> dict[str, Any]:
        options = config.search.options if strategy == config.search.strategy else {}
        return {
            "space": config.space, "strategy": strategy, "objectives": dict(config.search.objectives),
            "budget": config.budget, "constraints": dict(config.search.constraints), "seed": seed,
            "archive_path": folder / f"{strategy}-seed{seed}.sqlite", "options": dict(options),
            "first": (), "evaluation": how,
        }  # fmt: skip

    for strategy, seed in _runs(config):  # refuse another comparison's before minutes of measuring
        if asked(strategy, seed)["archive_path"].exists():
            Search(**asked(strategy, seed)).close()
    if table is None:
        extra = providers(config, run, context.own_metrics)
        store, evaluate = _measured(context, extra)
    else:
        store, (evaluate, about) = None, table_surrogate(context, table)

    def one(strategy: str, seed: int, evaluations: int = config.compare.evaluations) -> Archive:
        return search(evaluate=evaluate, evaluations=evaluations, batch=config.search.batch, **asked(strategy, seed))

    total = len(_runs(config))
    done = iter(range(total))

    def progress(strategy: str, seed: int) -> None:
        context.tracker.progress("compare", next(done), total, f"{strategy}, seed {seed}")

    try:
        long: tuple[Evaluation, ...] = ()
        if config.compare.yardstick:
            progress("random", config.compare.seeds)
            with closing(one("random", config.compare.seeds, config.compare.yardstick)) as archive:
                long = archive.evaluations
        found = compare(
            one, config.compare.strategies, range(config.compare.seeds), config.compare.evaluations, on_run=progress,
            yardstick=long,
        )  # fmt: skip
        context.tracker.progress("compare", total, total)
    finally:
        if store is not None:
            store.close()
    result = {**about, **found.to_dict()}
    write_json(run.result("compare"), result, run.seal)
    comparison_png(run.result("compare").with_name("hypervolume.png"), bands(found))
    provenance = {provider.metric: provider.about() for provider in extra}
    strategies = list(config.compare.strategies)
    run.record("compare", strategies=strategies, seeds=config.compare.seeds, provenance=provenance)
    return result


def _runs(config: Config) -> list[tuple[str, int]]:
    """(strategy, seed) of every search; the yardstick is one of random search with a seed of its own."""
    seeds = range(config.compare.seeds)
    long = [("random", config.compare.seeds)] if config.compare.yardstick else []
    return [*long, *((strategy, seed) for strategy in config.compare.strategies for seed in seeds)]


def _require_comparable(config: Config) -> None:
    """Refuse what does not exist or would do nothing here, before the first strategy has run for long."""
    if config.search.halving:
        raise UserError(
            "search.halving: a comparison evaluates every candidate whole, and shares it between strategies; leave it "
            "out, or --set search.halving=null"
        )
    for name in config.compare.strategies:
        options_of(name, config.search.options if name == config.search.strategy else {})
    if config.search.options and config.search.strategy not in config.compare.strategies:
        raise UserError(
            f"search.options: of {config.search.strategy}, which does not take part; compare.strategies: "
            f"{', '.join(config.compare.strategies)}"
        )


def bands(found: Comparison) -> list[Band]:
    """What the picture draws of a comparison."""
    return [
        Band(name, curve.at, curve.mean.tolist(), curve.low.tolist(), curve.high.tolist())
        for name, curve in found.curves.items()
    ]


def _measured(context: Context, extra: Sequence[Provider]) -> tuple[Archive, Evaluate]:
    """The supernet, with the metrics that it lacks, behind a store of evaluations in the run folder."""
    options = context.config.search
    path = context.run.result("compare").with_name("evaluations.sqlite")
    evaluator = context.evaluator()
    store = store_of(context, path, dict(options.objectives), dict(options.constraints))
    return store, remembered(store, with_providers(evaluator, extra))


def table_surrogate(context: Context, path: Path) -> tuple[Evaluate, dict[str, Any]]:
    """(metrics of any architecture from a table of evaluations, what is known of their quality).

    Costs in closed form are computed; every other metric is predicted by a Gaussian process on up to 2,000 rows,
    judged first on a fifth of them held out.
    """
    config = context.config
    space, seed = config.space, config.seed
    rows = read_table(path, space)
    if len(rows) > _ROWS:
        rows = [rows[i] for i in np.linspace(0, len(rows) - 1, _ROWS).round().astype(int)]
    wanted = list(dict.fromkeys((*config.search.objectives, *config.search.constraints)))
    workload = config.budget.workload
    closed = costs(space.smallest(), space.base, workload)
    modelled = [name for name in wanted if name not in closed]
    missing = [name for name in modelled if any(name not in e.metrics for e in rows)]
    if missing or len(rows) < 10:
        raise UserError(
            f"{path}: {missing[0] if missing else 'rows'}: not enough of it ({len(rows)} rows that succeeded)"
        )
    archs = [e.arch for e in rows]
    train, held = split(len(rows), 0.2, seed)
    predictors, quality = {}, {}
    for name in modelled:
        values = [e.metrics[name] for e in rows]
        trial = Predictor(space, "gp", seed).fit([archs[i] for i in train], [values[i] for i in train])
        quality[name] = trial.held_out([archs[i] for i in held], [values[i] for i in held])._asdict()
        predictors[name] = trial.fit(archs, values)

    def evaluate(asked: Sequence[Architecture]) -> list[dict[str, float]]:
        columns = {name: predictor.mean(asked) for name, predictor in predictors.items()}
        computed = [costs(arch, space.base, workload) for arch in asked]
        return [
            {name: float(columns[name][i]) if name in columns else float(computed[i][name]) for name in wanted}
            for i in range(len(asked))
        ]

    return evaluate, {"evaluated_by": "surrogate", "rows": len(rows), "surrogate": quality}


def strategies_table(result: dict[str, Any]) -> Table:
    """Every strategy at the numbers of evaluations that are reported, the one that ends best first."""
    curves = result["strategies"]
    at = next(iter(curves.values()))["evaluations"]
    shown = [at.index(n) for n in dict.fromkeys((*(n for n in REPORTED if n in at), at[-1]))]
    rows = []
    for name, curve in sorted(curves.items(), key=lambda item: -item[1]["mean"][-1]):
        cells = [f"{curve['mean'][k]:.4f} [{curve['low'][k]:.4f}, {curve['high'][k]:.4f}]" for k in shown]
        p_values = curve["p_against_random"]
        p_last = "" if p_values is None or name == "random" else f"{p_values[-1]:.3g}"
        rows.append((name, *cells, p_last))
    seeds = len(next(iter(curves.values()))["seeds"])
    note = f"Share of the hypervolume of all runs together; {seeds} seeds, 95 % bootstrap interval of the mean."
    if result["yardstick"]:
        long = result["yardstick"]
        note += f" {long['evaluations']:,} random evaluations reach {long['share']:.4f}."
    if result["evaluated_by"] == "surrogate":
        ranks = ", ".join(f"{name} tau {q['tau']:.2f}" for name, q in result["surrogate"].items()) or "costs only"
        note += f" Evaluated by a predictor of {result['rows']} rows (held out: {ranks})."
    columns = ("strategy", *(f"after {at[k]}" for k in shown), "p (better than random at the end)")
    return Table("Strategies compared", columns, rows, note)
