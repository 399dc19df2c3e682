"""Train the found architecture and others of equal size alone: same data, tokens, seeds and tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from llmnas.archive import Archive
from llmnas.config import Config
from llmnas.cost import BudgetSampler, hand_designed
from llmnas.errors import UserError
from llmnas.evaluate.rank import paired_difference
from llmnas.files import write_json
from llmnas.pipeline.context import Context
from llmnas.pipeline.decide import chosen
from llmnas.pipeline.pruned import layer_scores, pruned
from llmnas.pipeline.stand_alone import Start, train_alone
from llmnas.rng import generator
from llmnas.space import Architecture
from llmnas.train.settings import DistillSettings, TrainSettings

ORIGINAL = "original"
EQUAL = 0.02
"""Networks of equal size: at most the found one's parameters, and at least this share below them."""


def retrain(context: Context) -> dict[str, Any]:
    """Write `retrain/result.json`: every run, and the found model against each of the others.

    Random search and the learning rates are decided on a seed of their own, `retrain.seeds`.
    """
    config, run = context.config, context.run
    archive = Archive.load(run.require(run.evaluations, "search"))
    found = chosen(context, archive)
    archive.close()
    params = int(found.metrics["params"])
    head_dim = max(config.space.head_dim.choices)
    networks: dict[str, Architecture] = {"found": found.arch}
    for family in config.retrain.hand_designed:
        networks[family] = hand_designed(family, config.space.base, head_dim, params, EQUAL)
    for recipe in config.retrain.pruned:
        if recipe == "found_cut":
            networks[recipe] = found.arch
        else:
            # a recipe may use the whole budget, also where the search left some of it
            networks[recipe] = pruned(recipe, config.space, config.budget.max_params or params, layer_scores(context))
    if config.retrain.original:
        networks[ORIGINAL] = config.space.envelope
    drawn = random_runs(context, found.arch, params)
    if drawn:
        best = min(drawn, key=lambda r: r["val_loss"])
        networks["random"] = Architecture.from_dict(best["architecture"])
    grids = {name: grid_runs(context, name, arch) for name, arch in networks.items()}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in networks}
    for seed in range(config.retrain.seeds):
        for name, arch in networks.items():
            note = f"{name} {seed + 1}/{config.retrain.seeds}"
            runs[name].append(_train(context, name, arch, best_settings(context, grids[name]), seed, note))
    losses = {name: np.array([r["val_loss"] for r in rows]) for name, rows in runs.items()}
    pairs = [("found", name) for name in networks if name not in {"found", ORIGINAL}]  # those of its size
    if "found_cut" in networks:
        pairs += [("found_cut", recipe) for recipe in config.retrain.pruned if recipe != "found_cut"]
    comparisons = []
    for name, other in pairs:
        delta = paired_difference(losses[name], losses[other])
        ends = {"low": delta.low, "high": delta.high} if np.isfinite(delta.low) else {}
        comparisons.append({"of": name, "against": other, "difference": delta.mean, **ends, "clear": delta.clear})
    result = {"found": found.arch.id, "runs": runs, "comparisons": comparisons, "random": drawn, "lr_grid": grids}
    write_json(run.result("retrain"), result, run.seal)
    run.record("retrain", networks=len(networks), seeds=config.retrain.seeds)
    return result


def trainings(config: Config) -> int:
    """How many trainings `retrain` is: every network at each rate of the grid and on each seed, and the random draws.

    The best draw was trained at the stage's own rate: where the grid has that rate, one less.
    """
    options = config.retrain
    names = 1 + len({*options.hand_designed, *options.pruned}) + (options.random_baseline > 0) + options.original
    grid = set(options.lr_grid)
    stored = options.random_baseline > 0 and config.stage_settings("retrain", options.train).lr in grid
    return names * (options.seeds + len(grid)) + options.random_baseline - stored


def random_runs(context: Context, found: Architecture, params: int) -> list[dict[str, Any]]:
    """Random search that trains for real: every draw of the found size alone, on the tuning seed."""
    config = context.config
    count = config.retrain.random_baseline
    if not count:
        return []
    budget = replace(config.budget, min_params=math.ceil((1 - EQUAL) * params), max_params=params)
    drawn = BudgetSampler(config.space, budget).sample_many(generator(config.seed, "random baseline"), 50 * count)
    different = [arch for arch in dict.fromkeys(drawn) if arch != found][:count]
    if len(different) < count:
        raise UserError(
            f"retrain.random_baseline = {count}, but only {len(different)} other architectures were found between "
            f"{budget.min_params:,} and {params:,} parameters"
        )
    settings = config.stage_settings("retrain", config.retrain.train)
    seed = config.retrain.seeds
    return [_train(context, "random", a, settings, seed, f"random {i + 1}/{count}") for i, a in enumerate(different)]


def grid_runs(context: Context, name: str, arch: Architecture) -> list[dict[str, Any]]:
    """The network at every learning rate of the grid, on the tuning seed."""
    config = context.config
    settings = config.stage_settings("retrain", config.retrain.train)
    found = []
    for i, lr in enumerate(config.retrain.lr_grid):
        tried = settings.model_copy(update={"lr": lr})
        note = f"{name} lr {i + 1}/{len(config.retrain.lr_grid)}"
        found.append(_train(context, name, arch, tried, config.retrain.seeds, note))
    return found


def best_settings(context: Context, grid: list[dict[str, Any]]) -> TrainSettings:
    """The stage's settings with the best learning rate of the grid; without a grid, as they are."""
    settings = context.config.stage_settings("retrain", context.config.retrain.train)
    return settings.model_copy(update={"lr": min(grid, key=lambda r: r["val_loss"])["lr"]}) if grid else settings


def _train(
    context: Context, name: str, arch: Architecture, settings: TrainSettings, seed: int, note: str
) -> dict[str, Any]:
    options = context.config.retrain
    tuned = seed == options.seeds  # several learning rates share this seed: a folder each
    cut = name in options.pruned
    label = f"{'cut' if cut else name}-{arch.id}"  # recipes that agree are one network
    folder = context.run.stand_alone("retrain", f"{label}-lr{settings.lr:g}" if tuned else label, seed)
    start: Start = "scratch"
    if name == ORIGINAL:
        start, settings = "pretrained", _as_the_found_one(context, settings)
    elif cut:
        start = "pretrained"
    elif name == "found" and options.inherit:
        start = "supernet"
    return train_alone(context, arch, settings, seed, folder, note, start)


def _as_the_found_one(context: Context, settings: TrainSettings) -> TrainSettings:
    """For the whole pretrained model: the text alone, and the supernet's tokens too where the found one has them."""
    spent = context.run.recorded("train").get("tokens", 0) if context.config.retrain.inherit else 0
    more = math.ceil(spent / (settings.batch_size * settings.seq_len))
    return settings.model_copy(update={"steps": settings.steps + more, "distill": DistillSettings()})


def verdict(comparison: Mapping[str, Any]) -> str:
    """One honest sentence: the first network minus the other in nats and in perplexity, negative is better."""
    mean = comparison["difference"]
    change = f"{mean:+.4f} nats ({math.expm1(mean):+.1%} perplexity)"
    if "low" not in comparison:
        return f"{change} from one seed: no statement about noise"
    interval = f"{change} [{comparison['low']:+.4f}, {comparison['high']:+.4f}]"
    if not comparison["clear"]:
        return f"{interval}: within seed noise"
    return f"{interval}: the found model is {'better' if mean < 0 else 'WORSE'}"
