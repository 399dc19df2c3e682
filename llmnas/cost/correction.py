"""A learned predictor on top of the latency table: ridge regression that shrinks towards the table itself.

min over w of  sum_i ((x_i w - y_i) / y_i)^2 + strength |w - w0|^2,  w0 = (1, 0, ..., 0)

x_i: the table's sum, then what it may have missed (constant, depth, width, FLOPs, parameters), each
column scaled to the size of the measured latencies. Relative errors, because that is what is reported
(Hoerl and Kennard 1970, with a prior mean). The strength is the one of least leave-one-out error, which ridge
has in closed form: residual_i / (1 - leverage_i) (Allen 1974).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmnas.cost.flops import decode_flops_per_token, prefill_flops_per_token
from llmnas.cost.latency import BlockTable
from llmnas.cost.params import count_params
from llmnas.errors import UserError
from llmnas.files import Seal, read_json, write_json
from llmnas.space import Architecture, BaseModel

_STRENGTHS = np.logspace(-4, 3, 22)
_LEAST = 8
_FEATURES = 6


def latency_features(table: BlockTable, arch: Architecture) -> np.ndarray:
    """`[6]`: the table's milliseconds, 1, depth, hidden size, FLOPs a token, parameters."""
    base, context = BaseModel(**table.base), table.workload.tokens(BaseModel(**table.base))
    flops = prefill_flops_per_token if table.phase == "prefill" else decode_flops_per_token
    return np.array([
        table.latency_ms(arch), 1.0, arch.depth, arch.hidden_size,
        flops(arch, base, context), count_params(arch, base).total,
    ])  # fmt: skip


@dataclass(frozen=True)
class Corrected:
    """A latency table with a learned correction.

    Attributes:
        weights: [features], of the features as they are.
        strength: of the pull towards the bare table.
        error: mean absolute relative error, each architecture predicted by a fit without it.
    """

    table: BlockTable
    weights: np.ndarray
    strength: float
    error: float

    def latency_ms(self, arch: Architecture) -> float:
        """Milliseconds of one pass."""
        return float(latency_features(self.table, arch) @ self.weights)

    @classmethod
    def fit(cls, table: BlockTable, archs: Sequence[Architecture], ms: Sequence[float]) -> Corrected:
        """Learn from whole networks that were measured under the table's conditions.

        Raises:
            UserError: fewer than 8 of them.
        """
        if len(archs) < _LEAST:
            raise UserError(f"a latency correction needs at least {_LEAST} measured networks, got {len(archs)}")
        x = np.array([latency_features(table, arch) for arch in archs])
        y = np.asarray(ms, dtype=float)
        scale = np.abs(x).mean(0) / y.mean()
        scale[0] = 1.0
        rows = x / scale / y[:, None]
        prior = np.eye(x.shape[1])[0]
        weights, strength, error = min(
            (ridge_towards(rows, np.ones(len(y)), prior, strength) for strength in _STRENGTHS),
            key=lambda found: found[2],
        )
        return cls(table, weights / scale, strength, error)

    def save(self, path: Path, seal: Seal | None = None) -> None:
        """Write as JSON, without the table; `seal` as in `llmnas.files.hashed_open`."""
        write_json(path, {"weights": self.weights.tolist(), "strength": self.strength, "error": self.error}, seal)

    @classmethod
    def load(cls, path: Path, table: BlockTable) -> Corrected:
        """Read a correction of this table.

        Raises:
            UserError: damaged.
        """
        value = read_json(path)
        try:
            weights = np.array(value["weights"], dtype=float)
            if weights.shape != (_FEATURES,) or not np.isfinite(weights).all():
                raise ValueError(f"weights of shape {weights.shape}, or that are not finite")
            return cls(table, weights, float(value["strength"]), float(value["error"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: not a latency correction ({error}); delete it to have it measured again"
            ) from None


def ridge_towards(
    rows: np.ndarray, target: np.ndarray, prior: np.ndarray, strength: float
) -> tuple[np.ndarray, float, float]:
    """Ridge with a prior mean: (weights [k], strength, mean absolute leave-one-out residual).

    Args:
        rows: [n, k].
        target: [n].
        prior: [k], where the penalty is zero.
        strength: times n, the weight of the penalty.
    """
    gram = rows.T @ rows + strength * len(rows) * np.eye(rows.shape[1])
    solve: Callable[[np.ndarray], np.ndarray] = lambda b: np.linalg.solve(gram, b)  # noqa: E731
    weights = prior + solve(rows.T @ (target - rows @ prior))
    leverage = np.einsum("ij,ji->i", rows, solve(rows.T))
    left_out = (target - rows @ weights) / (1 - leverage)
    return weights, strength, float(np.abs(left_out).mean())
