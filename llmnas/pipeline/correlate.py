"""Does the supernet rank architectures as stand-alone training does?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from llmnas.cost import BudgetSampler, count_params, prefill_flops_per_token
from llmnas.errors import UserError
from llmnas.evaluate.conflict import neighbour_conflicts
from llmnas.evaluate.rank import Agreement, rank_agreement
from llmnas.evaluate.ranking import banded_agreement, tau_within, top_k_regret
from llmnas.files import write_json
from llmnas.pipeline.context import Context
from llmnas.pipeline.results import search_facts, train_facts
from llmnas.pipeline.stand_alone import train_alone
from llmnas.report.plots import correlation_png
from llmnas.rng import generator
from llmnas.space import Architecture
from llmnas.supernet import Transformer

_TOP = (1, 3, 5)
_BANDS, _BAND_MEMBERS = 4, 6  # at most so many bands of parameters, each of at least so many networks
_NEAR = 0.02  # pairs whose parameters differ by less


def band_architectures(context: Context) -> list[Architecture]:
    """Different architectures with parameter counts within band and budget, drawn without regard to their loss."""
    config = context.config
    options, space = config.correlate, config.space
    most = config.budget.max_params or math.inf
    # the band of a budget lies below its limit: beyond it the supernet has trained nothing
    centre = options.params or (
        most / (1 + options.band) if config.budget.max_params else count_params(space.middle(), space.base).total
    )
    low = max((1 - options.band) * centre, config.budget.min_params or 0)
    high = min((1 + options.band) * centre, most)
    budget = replace(config.budget, min_params=int(low), max_params=int(high))
    drawn = BudgetSampler(space, budget).sample_many(generator(config.seed, "correlate"), 50 * options.architectures)
    different = list(dict.fromkeys(drawn))[: options.architectures]
    if len(different) < options.architectures:
        raise UserError(
            f"correlate.architectures = {options.architectures}, but only {len(different)} were found between "
            f"{low:,.0f} and {high:,.0f} parameters; widen correlate.band"
        )
    return different


def worth(scores: Mapping[str, np.ndarray], truth: np.ndarray, params: np.ndarray) -> dict[str, Any]:
    """What each score [K] is worth: the regret of its best few, and tau among networks of like size.

    Tau in a band without pairs is undefined and left out.
    """
    bands = max(1, min(_BANDS, len(truth) // _BAND_MEMBERS))
    found: dict[str, Any] = {"regret": {}, "bands": {}, "near_pairs": {}}
    for name, score in scores.items():
        found["regret"][name] = {str(k): top_k_regret(score, truth, k)._asdict() for k in _TOP if k <= len(truth)}
        found["bands"][name] = [
            {**band._asdict(), "tau": band.tau._asdict()} for band in banded_agreement(score, truth, params, bands)
        ]
        near, pairs = tau_within(score, truth, params, _NEAR)
        if pairs:
            found["near_pairs"][name] = {**near._asdict(), "pairs": pairs, "width": _NEAR}
    return found


def gradient_conflicts(context: Context, model: Transformer, archs: list[Architecture]) -> dict[str, Any]:
    """How the networks' gradients stand to each other, each to the next one's; empty where nothing was asked for."""
    if not context.config.correlate.gradient_windows:
        return {}
    text = context.training_windows("correlate.gradient_windows")
    return {
        "windows": len(text),
        "pairs": [pair._asdict() for pair in neighbour_conflicts(model, archs, text, eos_id=context.document_end)],
    }


def adapted_runs(context: Context, archs: list[Architecture]) -> list[dict[str, Any]]:
    """Every architecture trained for a moment from the supernet's weights; empty where `adapt` is."""
    config = context.config
    if not config.correlate.adapt:
        return []
    settings = config.stage_settings("correlate", {**config.correlate.train, **config.correlate.adapt})
    found = []
    for i, arch in enumerate(archs):
        folder = context.run.stand_alone("correlate", f"{arch.id}-adapted", 0)
        found.append(train_alone(context, arch, settings, 0, folder, f"adapt {i + 1}/{len(archs)}", "supernet"))
    return found


def correlate(context: Context) -> dict[str, Any]:
    """Write `correlate/result.json`: tau of the supernet's ranking beside what parameter counts alone give.

    The stand-alone score is the mean over seeds; with two or more, the tau between the
    first two seeds is the ceiling that noise in the truth itself sets.
    """
    config, run = context.config, context.run
    archs = band_architectures(context)
    evaluator = context.evaluator(sample=config.search.windows)
    predicted = np.array([metrics["val_loss"] for metrics in evaluator(archs)])
    params = np.array([count_params(arch, config.space.base).total for arch in archs])
    settings = config.stage_settings("correlate", config.correlate.train)
    # too little text for it is said before networks train
    conflicts = gradient_conflicts(context, evaluator.model, archs)
    adapted = adapted_runs(context, archs)
    runs = [
        [
            train_alone(
                context, arch, settings, seed, run.stand_alone("correlate", arch.id, seed),
                f"correlate {i + 1}/{len(archs)}", "scratch",
            )
            for i, arch in enumerate(archs)
        ]
        for seed in range(config.correlate.seeds)
    ]  # fmt: skip
    actual = np.array([[result["val_loss"] for result in row] for row in runs])
    truth = actual.mean(0)
    context_tokens = config.budget.workload.tokens(config.space.base)
    flops = np.array([prefill_flops_per_token(arch, config.space.base, context_tokens) for arch in archs])
    scores = {"supernet": predicted, "params_only": -params, "flops_only": -flops}
    if adapted:
        scores["supernet_adapted"] = np.array([result["val_loss"] for result in adapted])
    taus: dict[str, Agreement] = {name: rank_agreement(score, truth) for name, score in scores.items()}
    if config.correlate.seeds > 1:
        taus["seed_to_seed"] = rank_agreement(actual[0], actual[1])
    result = {
        "architectures": [arch.to_dict() for arch in archs],
        "supernet_loss": predicted.tolist(),
        "adapted_loss": [result["val_loss"] for result in adapted],
        "stand_alone_loss": actual.tolist(),
        "params": params.tolist(),
        "agreement": {name: agreement._asdict() for name, agreement in taus.items()},
        **worth(scores, truth, params),
        "conflicts": conflicts,
        "cpu_seconds": {
            "supernet": train_facts(run, "train").get("cpu_seconds"),
            "search": search_facts(run).get("cpu_seconds"),
            "adapt": [result["cpu_seconds"] for result in adapted],
            "stand_alone": [result["cpu_seconds"] for row in runs for result in row],
        },
    }
    write_json(run.result("correlate"), result, run.seal)
    correlation_png(run.result("correlate").with_name("correlation.png"), predicted, truth, params)
    run.record("correlate", architectures=len(archs), seeds=config.correlate.seeds)
    return result
