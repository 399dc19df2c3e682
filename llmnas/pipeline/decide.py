"""Which architecture to build: the best of the search, as far as the validation text can tell."""

from __future__ import annotations

from typing import Any

from llmnas.archive import Archive
from llmnas.errors import UserError
from llmnas.evaluate.compare import Comparison, Losses, Race, race
from llmnas.evaluate.quality import QUALITY
from llmnas.files import write_json
from llmnas.pareto import Evaluation, violations
from llmnas.pipeline.context import Context
from llmnas.pipeline.results import decided
from llmnas.rng import generator

CONTENDERS = 8
WINDOWS = 4
"""The race may use so many times the windows that define the loss of the search."""
_ALPHA = 0.05


def contenders(archive: Archive, most: int = CONTENDERS) -> list[Evaluation]:
    """The best of the front by loss, then the best of the rest that meets every constraint."""
    front = sorted(archive.front(), key=_by_loss)
    taken = {evaluation.arch for evaluation in front}
    rest = [
        e
        for e in archive.evaluations
        if e.failure is None and e.arch not in taken and not any(violations(e.metrics, archive.constraints))
    ]
    return [*front, *sorted(rest, key=_by_loss)][:most]


def _by_loss(evaluation: Evaluation) -> tuple[float, float]:
    return evaluation.metrics["val_loss"], evaluation.metrics["params"]


def price(archive: Archive) -> str:
    """The metric that decides among equals: the first other objective to be made small, else parameters."""
    return next((name for name, way in archive.objectives.items() if name not in QUALITY and way == "min"), "params")


def decide(context: Context, archive: Archive, losses: Losses, windows: int) -> dict[str, Any]:
    """Race the contenders on `windows` validation windows and write `decision.json`.

    Args:
        losses: of a contender (by its number in `contenders(archive)`) on some of the windows.
    """
    found, metric = contenders(archive), price(archive)
    costs = [e.metrics[metric] for e in found]
    names = [e.arch.id for e in found]
    order = generator(context.config.seed, "race").permutation(windows)
    result = race(losses, costs, order, alpha=_ALPHA)
    decision = {
        "chosen": names[result.winner],
        "reason": result.reason,
        "price": metric,
        "confidence": 1 - _ALPHA,
        "windows": dict(zip(names, result.windows, strict=True)),
        "statements": statements(result, names),
    }
    write_json(context.run.decision, decision, context.run.seal)
    return decision


def statements(result: Race, names: list[str]) -> list[str]:
    """One sentence for every other contender."""
    return [_statement(result, comparison, names) for comparison in result.comparisons]


def _statement(result: Race, comparison: Comparison, names: list[str]) -> str:
    if comparison.clear or comparison.b in result.left:
        return comparison.sentence(names, result.winner)
    return f"{names[comparison.b]} lost to another contender after {comparison.windows} windows"


def chosen(context: Context, archive: Archive) -> Evaluation:
    """The architecture that `decide` chose.

    Raises:
        UserError: nothing that was evaluated meets the constraints.
    """
    if not contenders(archive):
        raise UserError(
            f"{archive.path}: {archive.why_empty().rstrip('.')}; loosen search.constraints {archive.constraints}, or "
            "search longer in another --run-dir"
        )
    decision = decided(context.run)
    for evaluation in archive.evaluations:
        if evaluation.arch.id == decision["chosen"]:
            return evaluation
    raise UserError(
        f"{context.run.decision}: chosen: {decision['chosen']} is none of the evaluated architectures; "
        "search again with --resume"
    )
