"""Does the supernet rank architectures as stand-alone training does?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from llmnas.cost import BudgetSampler, count_params
from llmnas.errors import UserError
from llmnas.evaluate.evaluator import Evaluator
from llmnas.evaluate.rank import Agreement, rank_agreement
from llmnas.files import write_json
from llmnas.pipeline.context import Context
from llmnas.pipeline.stand_alone import train_alone
from llmnas.rng import generator
from llmnas.space import Architecture


def band_architectures(context: Context) -> list[Architecture]:
    """Different architectures with parameter counts within the band, drawn without regard to their loss."""
    config = context.config
    options, space = config.correlate, config.space
    centre = options.params or config.budget.max_params or count_params(space.middle(), space.base).total
    low, high = (1 - options.band) * centre, (1 + options.band) * centre
    budget = replace(config.budget, min_params=int(low), max_params=int(high))
    drawn = BudgetSampler(space, budget).sample_many(generator(config.seed, "correlate"), 50 * options.architectures)
    different = list(dict.fromkeys(drawn))[: options.architectures]
    if len(different) < options.architectures:
        raise UserError(
            f"correlate.architectures = {options.architectures}, but only {len(different)} were found between "
            f"{low:,.0f} and {high:,.0f} parameters; widen correlate.band"
        )
    return different


def adapted_runs(context: Context, archs: list[Architecture]) -> list[dict[str, Any]]:
    """Every architecture trained for a moment from the supernet's weights; empty where `adapt` is."""
    config = context.config
    if not config.correlate.adapt:
        return []
    settings = config.stage_settings("correlate", {**config.correlate.train, **config.correlate.adapt})
    found = []
    for i, arch in enumerate(archs):
        folder = context.run.stand_alone("correlate", f"{arch.id}-adapted", 0)
        found.append(train_alone(context, arch, settings, 0, folder, f"adapt {i + 1}/{len(archs)}", inherit=True))
    return found


def correlate(context: Context) -> dict[str, Any]:
    """Write `correlate/result.json`: tau of the supernet's ranking beside what parameter counts alone give.

    The stand-alone score is the mean over seeds; with two or more, the tau between the
    first two seeds is the ceiling that noise in the truth itself sets.
    """
    config, run = context.config, context.run
    archs = band_architectures(context)
    windows, bytes_per_token = context.windows(config.search.windows)
    evaluator = Evaluator(context.supernet(), windows, len(windows), bytes_per_token, config.budget.workload)
    predicted = np.array([metrics["val_loss"] for metrics in evaluator(archs)])
    params = np.array([count_params(arch, config.space.base).total for arch in archs])
    settings = config.stage_settings("correlate", config.correlate.train)
    adapted = adapted_runs(context, archs)
    runs = [
        [
            train_alone(
                context, arch, settings, seed, run.stand_alone("correlate", arch.id, seed),
                f"correlate {i + 1}/{len(archs)}", inherit=False,
            )
            for i, arch in enumerate(archs)
        ]
        for seed in range(config.correlate.seeds)
    ]  # fmt: skip
    actual = np.array([[result["val_loss"] for result in row] for row in runs])
    truth = actual.mean(0)
    taus: dict[str, Agreement] = {
        "supernet": rank_agreement(predicted, truth),
        "params_only": rank_agreement(-params, truth),
    }
    if adapted:
        taus["supernet_adapted"] = rank_agreement(np.array([result["val_loss"] for result in adapted]), truth)
    if config.correlate.seeds > 1:
        taus["seed_to_seed"] = rank_agreement(actual[0], actual[1])
    result = {
        "architectures": [arch.to_dict() for arch in archs],
        "supernet_loss": predicted.tolist(),
        "adapted_loss": [result["val_loss"] for result in adapted],
        "stand_alone_loss": actual.tolist(),
        "params": params.tolist(),
        "agreement": {name: agreement._asdict() for name, agreement in taus.items()},
        "cpu_seconds": {
            "supernet": run.recorded("train").get("cpu_seconds"),
            "search": run.recorded("search").get("cpu_seconds"),
            "adapt": [result["cpu_seconds"] for result in adapted],
            "stand_alone": [result["cpu_seconds"] for row in runs for result in row],
        },
    }
    write_json(run.result("correlate"), result)
    run.record("correlate", architectures=len(archs), seeds=config.correlate.seeds)
    return result
