"""Search by gradients: train a mixture, decode it, evaluate what was decoded like any other architecture."""

from __future__ import annotations

from typing import Any

from llmnas.cost import sample
from llmnas.data.halves import halves
from llmnas.errors import UserError
from llmnas.files import write_json
from llmnas.pareto import Evaluation
from llmnas.pipeline.context import Context
from llmnas.pipeline.prepare import prepare
from llmnas.pipeline.search import decoded, search_supernet
from llmnas.report.findings import Table
from llmnas.rng import generator, torch_seed
from llmnas.space import Architecture, SearchSpace
from llmnas.space.restrict import restricted
from llmnas.supernet import Transformer, save_weights
from llmnas.supernet.mixture import first_alphas
from llmnas.train.darts import Relaxed, Search, require_usable, search_relaxed
from llmnas.train.darts_settings import DartsSettings
from llmnas.train.decode import free_share
from llmnas.train.engine import start_processes


def require_possible(context: Context) -> None:
    """`UserError` where the config, or the launch, is none that differentiable search can run."""
    config = context.config
    require_usable(config.train, config.budget, config.darts or DartsSettings(), start_processes().size)
    first_alphas(_space(context), 0)
    # a budget that nothing meets is named before anything is computed
    sample(_space(context), generator(config.seed, "feasible"), config.budget)


def _space(context: Context) -> SearchSpace:
    return restricted(context.config.space, context.config.darts.only if context.config.darts else {})


def search_by_gradients(context: Context, *, prepare_first: bool = False) -> list[Evaluation]:
    """Write `darts/result.json` and `supernet/`, and evaluate what was decoded into the archive.

    Returns:
        The decoded architectures with what was measured, in the order of the search; the last is the result.

    Raises:
        UserError: a supernet that was trained without it.
    """
    run = context.run
    if not run.supernet.exists():
        if prepare_first:
            prepare(context)
        _train(context)
    elif not run.result("darts").exists():
        raise UserError(f"{run.supernet}: trained without --method darts; use another --run-dir")
    found = decoded(context)
    archive = search_supernet(context, len(found))
    archive.close()
    evaluations = [archive.get(arch) for arch in found]
    return [evaluation for evaluation in evaluations if evaluation is not None]


def _train(context: Context) -> None:
    config, run, tracker = context.config, context.run, context.tracker
    settings, darts = config.train, config.darts or DartsSettings()
    data = halves(context.tokens("train").tokens, settings.seq_len, config.seed, darts.share)
    model = Transformer(config.space, torch_seed(config.seed, "init"))
    windows = context.watched_windows()

    def evaluate(arch: Architecture) -> dict[str, float]:
        return {"val_loss_decoded": float(context.losses(model, arch, windows).mean())}

    def log(step: int, metrics: dict[str, float]) -> None:
        tracker.log("supernet", step, metrics)
        if "train_loss" in metrics:
            note = f"loss {metrics['train_loss']:.3f}, {metrics['expected_params']:,.0f} parameters expected"
            tracker.progress("supernet", step, settings.steps, note)

    search = Search(model, _space(context), config.budget, data, settings, darts, start_processes(), config.seed)
    found = search_relaxed(search, folder=run.checkpoints, identity=context.identity, log=log, evaluate=evaluate)
    write_json(run.result("darts"), result(found), run.seal)
    # before the weights, whose presence ends the stage: a kill between the two loses nothing
    run.record("train", method="darts", steps=settings.steps, tokens=found.tokens, seconds=round(found.seconds, 1))
    save_weights(model, run.supernet, run.seal)


def result(found: Relaxed) -> dict[str, Any]:
    """Plain values of a search: every architecture once, in the order in which alpha meant it, the result last."""
    order = [arch for arch in dict.fromkeys(point.arch for point in found.trace) if arch != found.arch]
    return {
        "decoded": found.arch.id,
        "parameter_free_share": free_share(found.arch),
        "stopped_at": found.stopped.step if found.stopped else None,
        "trace": [
            # NaN is no JSON
            {"step": p.step, "eigenvalue": p.eigenvalue if p.eigenvalue == p.eigenvalue else None, "id": p.arch.id,
             "parameter_free_share": free_share(p.arch)}
            for p in found.trace
        ],
        "weights": dict(found.weights),
        "architectures": [arch.to_dict() for arch in [*order, found.arch]],
    }  # fmt: skip


def darts_table(evaluations: list[Evaluation]) -> Table:
    """What was decoded on the way, and at the end."""
    rows = [
        (
            e.arch.id, f"{e.metrics.get('val_loss', float('nan')):.4f}", f"{e.metrics.get('params', 0):,.0f}",
            f"{free_share(e.arch):.0%}",
        )
        for e in evaluations
    ]  # fmt: skip
    note = "Evaluated with the weights of the mixture; parameter-free: share of mixers and feed-forwards left out."
    columns = ("architecture", "val loss", "parameters", "parameter-free")
    return Table("Decoded by gradients, the result last", columns, rows, note)
