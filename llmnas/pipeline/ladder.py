"""The depth ladder: for every depth the best subset of the supernet's layers, and what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmnas.cost import count_params
from llmnas.errors import UserError
from llmnas.files import write_json
from llmnas.pipeline.context import Context
from llmnas.pipeline.stand_alone import load_alone, train_alone
from llmnas.report.plots import ladder_png
from llmnas.search.ladder import Subset, depth_ladder
from llmnas.space import Architecture
from llmnas.space.space import even_subset


def ladder(context: Context) -> dict[str, Any]:
    """Write `ladder/result.json`: for every depth the loss of the best subset, and of three others of that depth.

    The others: the first layers (the last are dropped), evenly spaced ones, and the same depth trained alone. Subsets
    are chosen on one half of the windows; every loss that is reported is of the other half, so that the choice
    flatters nothing.

    Raises:
        UserError: the space has one depth, or not the whole network; too little text.
    """
    config, run = context.config, context.run
    space, options = config.space, config.ladder
    depths = sorted(set(options.depths or space.depth.choices))
    _check(depths, space.depth.choices, space.layers)
    model = context.supernet()
    chosen_on, reported_on = context.halves("search.windows")
    done = 0

    def losses(subsets: Sequence[Subset]) -> list[float]:
        nonlocal done
        done += len(subsets)
        found = [float(context.losses(model, member(context, kept), chosen_on).mean()) for kept in subsets]
        context.tracker.progress("ladder", done, done + 1, f"depth {len(subsets[-1])}, best {min(found):.3f}")
        return found

    rungs = depth_ladder(space.layers, depths, losses, allowed=space.allows, limit=options.evaluations)
    rows = []
    for depth in depths:
        rung = rungs[depth]
        arch = member(context, rung.kept)
        rows.append({
            "depth": depth, "kept": list(rung.kept), "tried": rung.tried, "exhaustive": rung.exhaustive,
            "params": count_params(arch, space.base).total, "architecture": arch.to_dict(), "chosen_loss": rung.loss,
            "loss": _loss(context, model, rung.kept, reported_on),
            "first_layers": _loss(context, model, tuple(range(depth)), reported_on),
            "even_layers": _loss(context, model, even_subset(space.layers, depth), reported_on),
            "alone": alone(context, arch, reported_on),
        })  # fmt: skip
    result = {"windows": len(reported_on), "seeds": options.seeds, "rungs": rows}
    write_json(run.result("ladder"), result, run.seal)
    ladder_png(run.result("ladder").with_name("ladder.png"), rows)
    run.record("ladder", depths=len(rows))
    return result


def member(context: Context, kept: Subset) -> Architecture:
    """The largest network with these layers only."""
    largest = context.config.space.largest()
    layers = tuple(spec if i in kept else None for i, spec in enumerate(largest.layers))
    return Architecture(largest.hidden_size, layers)


def alone(context: Context, arch: Architecture, windows: np.ndarray) -> list[float]:
    """Losses of the same network trained alone, a seed each, with the best learning rate of the grid.

    The grid is tried on a seed of its own. Empty where `ladder.seeds` is 0.
    """
    config = context.config
    options = config.ladder
    settings = config.stage_settings("ladder", options.train)
    compact = arch.compact()

    def run(seed: int, lr: float) -> dict[str, Any]:
        folder = context.run.stand_alone("ladder", f"depth{arch.depth}-lr{lr:g}", seed)
        note = f"depth {arch.depth} alone, lr {lr:g}, seed {seed}"
        tried = settings.model_copy(update={"lr": lr})
        train_alone(context, arch, tried, seed, folder, note, "scratch")
        return {"lr": lr, "loss": float(context.losses(load_alone(context, arch, folder), compact, windows).mean())}

    if not options.seeds:
        return []
    grid = [run(options.seeds, lr) for lr in options.lr_grid]
    lr = min(grid, key=lambda r: r["loss"])["lr"] if grid else settings.lr
    return [run(seed, lr)["loss"] for seed in range(options.seeds)]


def _loss(context: Context, model: Any, kept: Subset, windows: np.ndarray) -> float:
    """Any subset has a loss, also one that the space's policy leaves out."""
    return float(context.losses(model, member(context, kept), windows).mean())


def _check(depths: list[int], choices: tuple[int, ...], layers: int) -> None:
    if max(choices) != layers:
        raise UserError(
            f"space.depth.choices: a ladder starts from the whole network; add {layers} (its layers) to {list(choices)}"
        )
    if len(choices) < 2:
        raise UserError(f"space.depth.choices: one depth, {layers}, is no ladder; add smaller ones and train again")
    wrong = sorted(set(depths) - set(choices))
    if wrong:
        raise UserError(f"ladder.depths: {wrong[0]} was not trained; allowed: {', '.join(map(str, choices))}")
