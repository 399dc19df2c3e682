"""The evaluator of a search: quality from the supernet, costs from closed forms."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

import numpy as np
from torch import Tensor

from llmnas.cost import Workload, costs
from llmnas.errors import UserError
from llmnas.evaluate.quality import quality, window_losses
from llmnas.evaluate.recalibrate import recalibrate, statistics
from llmnas.memory import asking
from llmnas.space import Architecture
from llmnas.supernet import Transformer


class Estimate(NamedTuple):
    """A mean and its standard error."""

    mean: float
    error: float


class Part(NamedTuple):
    """Some of the work of a candidate: windows `first` to before `last` of the sample in the order of `spread`."""

    arch: Architecture
    first: int
    last: int


def spread(count: int) -> np.ndarray:
    """[count] the numbers below `count` in an order of which every beginning is spread evenly over them.

    The van der Corput sequence: numbers with their binary digits reversed, those too great left out.
    """
    digits = max(count - 1, 1).bit_length()
    turned = [int(f"{i:0{digits}b}"[::-1], 2) for i in range(2**digits)]
    return np.array([i for i in turned if i < count])


def regression_estimate(sample: np.ndarray, reference: np.ndarray, chosen: np.ndarray) -> Estimate:
    """Mean over all windows from a sample of them, with a known reference as control variate.

    y + b (X - x), b the regression slope of the sample on the reference (Cochran 1977,
    section 7.3): what makes a window hard is common to all networks, so the reference
    explains most of the variance between windows. Error: residual variance over n with
    the finite-population correction 1 - n / N.

    Args:
        sample: [n] losses of the candidate on the chosen windows.
        reference: [N] losses of the reference on all windows.
        chosen: [n] which windows those are.
    """
    n, total = len(sample), len(reference)
    x = reference[chosen]
    spread = x - x.mean()
    variance = float(spread @ spread)
    slope = float(spread @ (sample - sample.mean())) / variance if n > 2 and variance > 0 else 0.0
    residual = sample - sample.mean() - slope * spread
    mean = float(sample.mean() + slope * (reference.mean() - x.mean()))
    if n == total or n < 3:
        return Estimate(mean, 0.0 if n == total else float("inf"))
    return Estimate(mean, float(np.sqrt(residual @ residual / (n - 2) / n * (1 - n / total))))


class Evaluator:
    """Measures architectures of one supernet; callable as `search` wants it.

    Args:
        model: the trained supernet.
        windows: [N, seq + 1] validation windows; the loss reported is the mean over all of them.
        sample: windows a candidate is really run on, evenly spread; the largest network,
            run once on all, corrects the mean (see `regression_estimate`).
        bytes_per_token: of the validation text.
        workload: what costs are counted for.
        calibration: [count, seq + 1] text on which every candidate's statistics are taken anew; None leaves
            it with those of the supernet.
        eos_id: the token that ends a document, for a supernet trained with attention within documents.

    Raises:
        UserError: calibration of a model that holds no statistics.
    """

    def __init__(
        self,
        model: Transformer,
        windows: np.ndarray,
        sample: int,
        bytes_per_token: float,
        workload: Workload,
        calibration: np.ndarray | None = None,
        eos_id: int | None = None,
    ) -> None:
        if calibration is not None and not statistics(model):
            raise UserError("search.recalibrate: nothing in this supernet holds statistics; leave it at 0")
        self.model = model
        self.calibration = calibration
        self.eos_id = eos_id
        self.bytes_per_token = bytes_per_token
        self.workload = workload
        self.chosen = np.linspace(0, len(windows) - 1, min(sample, len(windows))).round().astype(int)
        self.reference = self.losses(None, windows)
        self.windows = windows[self.chosen]
        self._order = spread(len(self.chosen))

    def __call__(self, archs: Sequence[Architecture]) -> list[dict[str, float]]:
        """Metrics of every architecture, by the names of the contract; `val_loss_error` is one standard error."""
        return [self.measure(arch) for arch in archs]

    def measure(self, arch: Architecture) -> dict[str, float]:
        """Metrics of one architecture."""
        return self.metrics(arch, self.part(Part(arch, 0, len(self.chosen))))

    def part(self, part: Part) -> np.ndarray:
        """[last - first] losses on some of the sample, which comes in the order of `spread`."""
        return self.losses(part.arch, self.windows[self._order[part.first : part.last]])

    def metrics(self, arch: Architecture, losses: np.ndarray) -> dict[str, float]:
        """Metrics from the losses on the first windows of the sample in the order of `spread`.

        The same numbers, bit for bit, in whatever parts all windows were run.
        """
        places = np.argsort(self._order[: len(losses)])
        chosen = self.chosen[self._order[: len(losses)][places]]
        loss, error = regression_estimate(losses[places], self.reference, chosen)
        return {
            **quality(loss, self.bytes_per_token),
            "val_loss_error": error,
            **costs(arch, self.model.base, self.workload),
        }

    def on(self, model: Transformer) -> Evaluator:
        """The same windows and settings with another model of the same space."""
        other = copy(self)
        other.model = model
        return other

    def losses(self, arch: Architecture | None, windows: np.ndarray) -> np.ndarray:
        """[count] losses of the windows given (None: of the largest network), recalibrated where that was asked for."""
        values: dict[str, Tensor] = {}
        what = f"measuring {f'architecture {arch.id}' if arch else 'the largest network'}"
        what = f"{what} on sequences of {windows.shape[1] - 1} tokens"
        with asking(what, "lower train.seq_len, or take a smaller space"):
            if self.calibration is not None:
                values = recalibrate(self.model, arch, self.calibration, eos_id=self.eos_id)
            return window_losses(self.model, arch, windows, values=values, eos_id=self.eos_id)
