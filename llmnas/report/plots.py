"""Pictures of a run as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from llmnas.files import atomic_open
from llmnas.pareto import Evaluation, Objectives
from llmnas.report.series import GREY, PALETTE, VERMILION, axis_label, loss_curves, panels, points

_WIDTH, _HEIGHT, _DPI = 6.4, 4.4, 150  # of one panel, in inches and dots per inch


def front_png(
    path: Path | IO[bytes], evaluations: Sequence[Evaluation], front: Sequence[Evaluation], objectives: Objectives
) -> None:
    """Draw every evaluation, and the Pareto front as a line: the first objective over each other one.

    With one objective it is drawn over the evaluation number. An empty front or archive gives empty axes.
    """
    sides = panels(objectives)
    figure = Figure(figsize=(_WIDTH * len(sides), _HEIGHT), layout="constrained")
    for axes, (x, y) in zip(figure.subplots(1, len(sides), squeeze=False)[0], sides, strict=True):
        everything, best = points(evaluations, x, y), points(front, x, y)
        axes.scatter([p[0] for p in everything], [p[1] for p in everything], s=14, color=GREY, label="evaluated")
        axes.plot(
            [p[0] for p in best], [p[1] for p in best], marker="o", markersize=5, color=VERMILION, label="Pareto front"
        )
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        _finish(axes, axis_label(x), axis_label(y))
    _save(figure, path)


def curves_png(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Draw the losses in the records of metrics.jsonl over optimizer steps; no record gives empty axes."""
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    axes = figure.subplots()
    for i, curve in enumerate(loss_curves(records)):
        axes.plot(
            curve.steps, curve.values, color=PALETTE[i % len(PALETTE)], linewidth=1.2,
            marker="o" if len(curve.steps) < 20 else "", markersize=4, label=_plain(curve.label),
        )  # fmt: skip
    _finish(axes, "optimizer step", "loss (nats/token)")
    _save(figure, path)


def correlation_png(path: Path, predicted: np.ndarray, actual: np.ndarray, params: np.ndarray) -> None:
    """Draw stand-alone losses over the supernet's and over parameters: each `[K]`, losses in nats a token."""
    figure = Figure(figsize=(2 * _WIDTH, _HEIGHT), layout="constrained")
    left, right = figure.subplots(1, 2)
    drawn = left.scatter(predicted, actual, c=params, s=22, cmap="viridis")
    figure.colorbar(drawn, ax=left, label="parameters", format=EngFormatter(sep=""))
    right.scatter(params, actual, s=22, color=PALETTE[0])
    right.xaxis.set_major_formatter(EngFormatter(sep=""))
    _finish(left, "loss with the supernet's weights (nats/token)", "loss after training alone (nats/token)")
    _finish(right, "parameters", "loss after training alone (nats/token)")
    _save(figure, path)


class Band(NamedTuple):
    """A line with its interval: what one strategy reaches after so many evaluations."""

    label: str
    at: Sequence[int]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def ladder_png(path: Path, rungs: Sequence[Mapping[str, Any]]) -> None:
    """Draw the losses of a depth ladder over depth: the best subset, the usual ones, the same depth trained alone."""
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    axes = figure.subplots()
    depths = [rung["depth"] for rung in rungs]
    lines = {"best subset": "loss", "last layers dropped": "first_layers", "evenly spaced": "even_layers"}
    for i, (label, key) in enumerate(lines.items()):
        axes.plot(depths, [rung[key] for rung in rungs], color=PALETTE[i], marker="osD"[i], markersize=5, label=label)
    trained = [rung for rung in rungs if rung["alone"]]
    if trained:
        means = [float(np.mean(rung["alone"])) for rung in trained]
        axes.plot([rung["depth"] for rung in trained], means, color=GREY, marker="^", label="trained alone")
    _finish(axes, "layers kept", "loss (nats/token)")
    _save(figure, path)


def comparison_png(path: Path, bands: Sequence[Band]) -> None:
    """Draw the share of the best known hypervolume over the number of evaluations, a line and its interval each."""
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    axes = figure.subplots()
    for i, band in enumerate(bands):
        colour = PALETTE[i % len(PALETTE)]
        axes.plot(band.at, band.mean, color=colour, linewidth=1.4, label=_plain(band.label))
        axes.fill_between(band.at, band.low, band.high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    _finish(axes, "evaluations", "share of the best known hypervolume")
    _save(figure, path)


def study_png(path: Path, correlation: Mapping[str, Any], comparison: Mapping[str, Any]) -> None:
    """Draw the results of `correlate` (loss alone over the supernet's loss) and of `retrain` (a dot a seed).

    Vertical bars reach from the lowest to the highest seed of an architecture.
    """
    figure = Figure(figsize=(2 * _WIDTH, _HEIGHT), layout="constrained")
    left, right = figure.subplots(1, 2)
    runs = correlation["stand_alone_loss"]  # [seeds, architectures]
    mean = [sum(losses) / len(losses) for losses in zip(*runs, strict=True)]
    low = [m - min(losses) for m, losses in zip(mean, zip(*runs, strict=True), strict=True)]
    high = [max(losses) - m for m, losses in zip(mean, zip(*runs, strict=True), strict=True)]
    tau = correlation["agreement"]["supernet"]["tau"]
    left.errorbar(
        correlation["supernet_loss"], mean, yerr=[low, high], fmt="o", markersize=4, linewidth=1, color=PALETTE[0],
        label=f"{len(mean)} architectures, tau {tau:.2f}",
    )  # fmt: skip
    _finish(left, "loss with the supernet's weights (nats/token)", "loss trained alone (nats/token)")
    for i, (name, rows) in enumerate(comparison["runs"].items()):
        right.scatter(
            [i] * len(rows), [r["perplexity"] for r in rows], s=22, color=VERMILION if name == "found" else GREY
        )
    right.set_xticks(range(len(comparison["runs"])), [_plain(name) for name in comparison["runs"]])
    _finish(right, "network, one dot a seed", axis_label("perplexity"))
    _save(figure, path)


def _plain(text: str) -> str:
    """Text that matplotlib shows as it is: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def _finish(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(_plain(x_label))
    axes.set_ylabel(_plain(y_label))
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def _save(figure: Figure, path: Path | IO[bytes]) -> None:
    with atomic_open(path) if isinstance(path, Path) else nullcontext(path) as stream:
        figure.savefig(stream, format="png", dpi=_DPI)
