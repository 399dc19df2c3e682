"""Block scores learned from whichever networks were measured: ridge regression on which block stands where.

Replace-one tables (`block_scores`) say nothing before every block of a cell is replaced, and need parents that may be
outside of a budget. Here a metric is a sum over blocks too, f(a) = b[c] + sum_i s[c, i, o_i] for a network of cell c
with option o_i in layer i, but b and s are estimated. Each is a sum of effects that more or fewer cells and layers
share, every group of effects with a Gaussian prior whose variance maximises the marginal likelihood (empirical Bayes;
MacKay 1992, "Bayesian interpolation"). So a few networks say something of every block. And a block that was replaced
alone gets the score measured: where the metric adds up over blocks and all replacements in a cell are known, the cell's
scores are exact, but for the ridge.

Shapes: n networks; C cells; L layers; O options of the cell with most (others are padded); D dimensions that a layer
chooses for itself; F effects of a group; G groups.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from llmnas.search.mip import cells
from llmnas.space import Architecture, LayerSpec, SearchSpace

_REFIT = 1.5
"""Variances are learned again when there is this many times the data of the last time."""
_LEARN = 256
"""They are learned from so many networks, evenly spaced: that is cubic in them."""
_VARIANCES, _NOISE = (1e-6, 1e2), (1e-8, 1.0)
_STEPS = 30


class Scores(NamedTuple):
    """A metric as a sum: `base` [C] of cells plus `blocks` [C, L, O] of what stands in the layers."""

    base: np.ndarray
    blocks: np.ndarray


class BlockLayout:
    """Cells, blocks and their effects as numbers; the cells and options are those of `mip.cells`, in its order."""

    def __init__(self, space: SearchSpace) -> None:
        self.cells = cells(space)
        self.layers = space.layers
        self._options = [{spec: o for o, spec in enumerate(cell.options)} for cell in self.cells]
        self.options = max(map(len, self._options))
        self.real = np.arange(self.options) < np.array([[len(cell.options)] for cell in self.cells])
        """[C, O]: which options are no padding."""
        settings = list(space.settings(space.shared_dimensions))
        shared = [[("hidden_size", h), *s.items()] for h, s in itertools.product(space.hidden_size, settings)]

        def values(spec: LayerSpec | None) -> list[Hashable]:
            """What the effects of a block are of; padding never stands in a network, so it may pass for a skip."""
            return [(d, spec and getattr(spec, d)) for d in space.layer_dimensions or ("ffn_size",)]

        table = [[values(spec) for spec in _padded(cell.options, self.options)] for cell in self.cells]
        hidden = [cell.hidden_size for cell in self.cells]
        self.of_cells = [_numbered(shared), _numbered([[c] for c in range(len(self.cells))])]
        self.of_blocks = [
            (_numbered(table), False),
            (_numbered(table), True),
            (_numbered([[[(h, v) for v in vs] for vs in row] for h, row in zip(hidden, table, strict=True)]), False),
            (_numbered([[[tuple(vs)] for vs in row] for row in table]), True),
            (_numbered([[[(c, o)] for o in range(self.options)] for c in range(len(self.cells))]), True),
        ]
        """Of every group the effects, [C, O, k], and whether each layer has its own."""

    def encode(self, archs: Sequence[Architecture]) -> tuple[np.ndarray, np.ndarray]:
        """(cell [n], option in every layer [n, L]) of members of the space."""
        found = [self._place(arch) for arch in archs]
        return np.array([c for c, _ in found]), np.array([choice for _, choice in found])

    def _place(self, arch: Architecture) -> tuple[int, list[int]]:
        for c, (cell, options) in enumerate(zip(self.cells, self._options, strict=True)):
            if cell.hidden_size == arch.hidden_size and all(spec in options for spec in arch.layers):
                return c, [options[spec] for spec in arch.layers]
        raise AssertionError(f"{arch.id} is of no cell")

    def features(self, c: np.ndarray, choice: np.ndarray) -> list[sparse.csr_array]:
        """How often each effect of each group is in the networks, G times [n, F]."""
        found = [_counts(ids[c], ids.max() + 1) for ids in self.of_cells]
        for ids, own in self.of_blocks:
            size = ids.max() + 1
            effects = ids[c[:, None], choice]  # [n, L, k]
            if own:
                effects = effects + size * np.arange(self.layers)[:, None]
            found.append(_counts(effects.reshape(len(c), -1), size * (self.layers if own else 1)))
        return found

    def scores(self, weights: Sequence[np.ndarray]) -> Scores:
        """The sums of the effects' weights, G times [F]."""
        split = len(self.of_cells)
        base = sum(w[ids].sum(-1) for ids, w in zip(self.of_cells, weights[:split], strict=True))
        blocks = np.zeros((len(self.cells), self.layers, self.options))
        for (ids, own), w in zip(self.of_blocks, weights[split:], strict=True):
            by_layer = w.reshape(self.layers if own else 1, -1)
            blocks += by_layer[:, ids].sum(-1).transpose(1, 0, 2)
        return Scores(np.asarray(base), blocks)


def _padded(options: Sequence[LayerSpec | None], length: int) -> Iterable[LayerSpec | None]:
    return itertools.islice(itertools.chain(options, itertools.repeat(None)), length)


def _numbered(names: Any) -> np.ndarray:
    """Nested lists of names as an array of numbers, equal names as equal ones."""
    number: dict[Hashable, int] = {}

    def replace(value: Any) -> Any:
        return [replace(v) for v in value] if isinstance(value, list) else number.setdefault(value, len(number))

    return np.array(replace(names), dtype=np.int64)


def _counts(ids: np.ndarray, size: int) -> sparse.csr_array:
    """[n, size] from the numbers [n, k] of what is in each row."""
    rows = np.repeat(np.arange(len(ids)), ids.shape[1])
    return sparse.csr_array((np.ones(ids.size), (rows, ids.ravel())), shape=(len(ids), int(size)))


class BlockModel:
    """One metric; `fit`, then `scores`."""

    def __init__(self, layout: BlockLayout) -> None:
        self._layout = layout
        groups = len(layout.of_cells) + len(layout.of_blocks)
        self._log = np.log(np.array([*np.full(groups, 1.0 / groups), 1e-3]))
        """Logarithms of the variances of the groups, then of the noise, in units of the metric's own variance."""
        self._learned_from = 0
        self.scores = Scores(np.zeros(len(layout.cells)), np.zeros((len(layout.cells), layout.layers, layout.options)))

    def fit(self, c: np.ndarray, choice: np.ndarray, values: np.ndarray) -> None:
        """Learn the scores from networks (`encode`) and their values [n]."""
        centre, spread = values.mean(), values.std() or 1.0
        y = (values - centre) / spread
        features = self._layout.features(c, choice)
        units = [1.0 / np.sqrt(max(f.power(2).sum() / len(y), 1e-12)) for f in features]  # a mean diagonal of one
        features = [f * unit for f, unit in zip(features, units, strict=True)]
        if len(y) >= _REFIT * self._learned_from:
            self._learned_from = len(y)
            some = np.unique(np.linspace(0, len(y) - 1, min(len(y), _LEARN)).round().astype(int))
            self._log = _learned([_gram(f[some]) for f in features], y[some], self._log)
        variances = np.exp(self._log)
        covariance = sum(v * _gram(f) for v, f in zip(variances[:-1], features, strict=True))
        alpha = cho_solve(cho_factor(covariance + variances[-1] * np.eye(len(y)), lower=True), y)
        weights = [
            spread * v * unit * (f.T @ alpha) for v, unit, f in zip(variances[:-1], units, features, strict=True)
        ]
        base, blocks = self._layout.scores(weights)
        self.scores = Scores(base + centre, blocks)


def _gram(features: sparse.csr_array) -> np.ndarray:
    return np.asarray((features @ features.T).toarray())


def _learned(grams: Sequence[np.ndarray], y: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Log variances [G + 1] that maximise log N(y; 0, sum_g v_g K_g + v_noise I), a local optimum by L-BFGS.

    d/d log v_g of the negative is v_g (tr(K^-1 K_g) - alpha^T K_g alpha) / 2 with alpha = K^-1 y.
    """
    parts = [*grams, np.eye(len(y))]

    def negative(log: np.ndarray) -> tuple[float, np.ndarray]:
        variances = np.exp(log)
        factor = cho_factor(sum(v * part for v, part in zip(variances, parts, strict=True)), lower=True)
        inverse = cho_solve(factor, np.eye(len(y)))
        alpha = inverse @ y
        value = 0.5 * float(y @ alpha) + float(np.log(np.diag(factor[0])).sum())
        gap = inverse - np.outer(alpha, alpha)
        return value, 0.5 * variances * np.array([np.vdot(gap, part) for part in parts])

    bounds = [tuple(np.log(_VARIANCES))] * len(grams) + [tuple(np.log(_NOISE))]
    best = minimize(negative, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": _STEPS})
    return np.asarray(best.x)
