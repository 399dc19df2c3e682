"""Predictors of a metric from the architecture, with uncertainty: what measured sub-networks say of the others.

Shapes: n architectures; M members of an ensemble; F one-hot features; H hidden units.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, NotRequired

import numpy as np
import torch
from pydantic import StringConstraints
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from scipy import stats
from torch import Tensor
from torch.nn.functional import relu
from typing_extensions import TypedDict

from llmnas.errors import UserError
from llmnas.files import Seal, as_kind, parse_json, regular, user_path, write_bytes
from llmnas.rng import generator, torch_seed
from llmnas.search.arch_kernel import Layout
from llmnas.search.surrogate import GaussianProcess
from llmnas.space import Architecture, SearchSpace

Kind = Literal["gp", "ensemble"]

_MEMBERS, _HIDDEN, _STEPS = 5, 64, 400


class HeldOut(NamedTuple):
    """How good a predictor is on architectures it was not trained on.

    Attributes:
        size: how many they were.
        tau: Kendall's tau-b of the predicted and the measured ranking.
        spearman: Spearman's rho.
        rmse: root mean square error, in the metric's unit.
        coverage: share of measured values within 1.96 predicted standard deviations (0.95 where it is calibrated).
    """

    size: int
    tau: float
    spearman: float
    rmse: float
    coverage: float


def space_digest(space: SearchSpace) -> str:
    """Names the space: predictors of different spaces do not mix."""
    return hashlib.sha256(space.model_dump_json().encode()).hexdigest()


class Ensemble:
    """Deep ensemble (Lakshminarayanan et al. 2017) of networks with two hidden layers on one-hot codes.

    Every member starts elsewhere and trains on its own bootstrap sample, all of them in one batched product. The
    mean is the prediction, the spread of the members the uncertainty (of what is not known, not of noise).
    """

    def __init__(self, features: int, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(torch_seed(seed, "ensemble"))
        sizes = [(features, _HIDDEN), (_HIDDEN, _HIDDEN), (_HIDDEN, 1)]
        self.weights = [
            torch.randn(_MEMBERS, n, m, generator=self._generator) * (2 / max(n, 1)) ** 0.5 for n, m in sizes
        ]
        self.biases = [torch.zeros(_MEMBERS, 1, m) for _, m in sizes]
        self.scale = torch.tensor([0.0, 1.0], dtype=torch.float64)

    def fit(self, features: Tensor, values: Tensor) -> None:
        """Train on values [n] at features [n, F], full batches of Adam with weight decay."""
        spread = values.std(correction=0)
        self.scale = torch.stack([values.mean(), spread if spread > 0 else torch.ones_like(spread)])
        n = len(values)
        chosen = torch.randint(n, (_MEMBERS, n), generator=self._generator)
        x = features.float()[chosen]
        y = ((values - self.scale[0]) / self.scale[1]).float()[chosen]
        parameters = [*self.weights, *self.biases]
        for parameter in parameters:
            parameter.requires_grad_(True)
        adam = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 0.01, total_steps=_STEPS)
        for _ in range(_STEPS):
            loss = ((self._forward(x) - y) ** 2).mean()
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            schedule.step()
        for parameter in parameters:
            parameter.requires_grad_(False)

    def _forward(self, x: Tensor) -> Tensor:
        """[M, n, F] -> [M, n]."""
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = relu(torch.baddbmm(bias, x, weight))
        return torch.baddbmm(self.biases[-1], x, self.weights[-1])[..., 0]

    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [n] and standard deviation [n] over the members."""
        found = self._forward(features.float().expand(_MEMBERS, -1, -1)).double() * self.scale[1] + self.scale[0]
        return found.mean(0), found.std(0)

    def state(self) -> dict[str, Tensor]:
        """Everything that was learned."""
        named = {f"weight{i}": w for i, w in enumerate(self.weights)} | {
            f"bias{i}": b for i, b in enumerate(self.biases)
        }
        return named | {"scale": self.scale}

    def load(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state`."""
        self.weights = [state[f"weight{i}"] for i in range(3)]
        self.biases = [state[f"bias{i}"] for i in range(3)]
        self.scale = state["scale"]


class _About(TypedDict):
    """What a file says of the predictor in it."""

    space: str
    kind: Kind
    metric: str
    seed: Annotated[str, StringConstraints(pattern=r"^\d{1,18}$")]
    quality: NotRequired[HeldOut | None]


class Predictor:
    """Predicts one metric for any architecture of one space.

    Args:
        kind: `gp`: a Gaussian process with the Hamming kernel, the better one with up to a few hundred
            measurements, cubic in their number; `ensemble`: small networks, linear in it (OFA's predictor).

    Attributes:
        quality: how good it was when it was judged, if it was; stored with it.
    """

    def __init__(self, space: SearchSpace, kind: Kind = "gp", seed: int = 0) -> None:
        self.space = space
        self.kind = kind
        self.quality: HeldOut | None = None
        self._seed = seed
        self._layout = Layout(space)
        self._model: GaussianProcess | Ensemble | None = None
        self._told: tuple[Tensor, Tensor] | None = None

    def fit(self, archs: Sequence[Architecture], values: Sequence[float]) -> Predictor:
        """Train on measured values of members of the space; returns itself.

        Raises:
            UserError: an architecture of another space, a value that is not finite, or fewer than two of them.
        """
        if len(archs) < 2 or len(archs) != len(values) or not np.isfinite(values).all():
            raise UserError(
                f"predictor: needs at least two architectures with one finite value each, got {len(archs)} and "
                f"{len(values)} values"
            )
        codes = self._codes(archs)
        told = torch.tensor(list(values), dtype=torch.float64)
        if self.kind == "gp":
            if not isinstance(self._model, GaussianProcess):
                self._model = GaussianProcess("hamming", self._layout, ())
            features = self._model.kernel.embed(codes)
        else:
            features = self._one_hot(codes)
            self._model = Ensemble(features.shape[1], self._seed)
        self._model.fit(features, told)
        self._told = (codes, told)
        return self

    def predict(self, archs: Sequence[Architecture]) -> tuple[np.ndarray, np.ndarray]:
        """Mean [n] and standard deviation [n], in the metric's unit.

        Raises:
            UserError: not fitted yet, or an architecture of another space.
        """
        model, features = self._ready(archs)
        mean, deviation = model.predict(features)
        return mean.numpy(), deviation.numpy()

    def mean(self, archs: Sequence[Architecture]) -> np.ndarray:
        """The first of `predict` alone, in a fraction of the time where a Gaussian process predicts."""
        model, features = self._ready(archs)
        found = model.mean(features) if isinstance(model, GaussianProcess) else model.predict(features)[0]
        return found.numpy()

    def _ready(self, archs: Sequence[Architecture]) -> tuple[GaussianProcess | Ensemble, Tensor]:
        """(the model, the architectures as it sees them [n, F])."""
        if self._model is None:
            raise UserError("predictor: not fitted yet")
        codes = self._codes(archs)
        if isinstance(self._model, GaussianProcess):
            return self._model, self._model.kernel.embed(codes)
        return self._model, self._one_hot(codes)

    def _one_hot(self, codes: Tensor) -> Tensor:
        return self._layout.one_hot(codes, range(len(self._layout.values)))

    def _codes(self, archs: Sequence[Architecture]) -> Tensor:
        for arch in archs:
            if not self.space.contains(arch):
                raise UserError(f"predictor: architecture {arch.id} is not of the space that it was made for")
        return self._layout.codes(archs)

    def held_out(self, archs: Sequence[Architecture], values: Sequence[float]) -> HeldOut:
        """Agreement with measured values of architectures that were not in `fit`."""
        mean, deviation = self.predict(archs)
        actual = np.asarray(values, dtype=float)
        inside = np.abs(actual - mean) <= 1.96 * np.maximum(deviation, 1e-12)
        return HeldOut(
            len(actual),
            float(stats.kendalltau(mean, actual).statistic),
            float(stats.spearmanr(mean, actual).statistic),
            float(np.sqrt(np.mean((mean - actual) ** 2))),
            float(inside.mean()),
        )

    def was_told(self, archs: Sequence[Architecture], values: Sequence[float]) -> bool:
        """Whether it was fitted to exactly these."""
        if self._told is None or len(archs) != len(self._told[1]):
            return False
        told = torch.tensor(list(values), dtype=torch.float64)
        return torch.equal(self._told[0], self._codes(archs)) and torch.equal(self._told[1], told)

    def save(self, path: str | Path, metric: str, seal: Seal | None = None) -> None:
        """Write everything to one safetensors file that names the space and the metric.

        `seal` as in `llmnas.files.hashed_open`.
        """
        if self._model is None or self._told is None:
            raise UserError("predictor: not fitted yet")
        tensors = {"codes": self._told[0], "values": self._told[1]}
        if isinstance(self._model, Ensemble):
            tensors |= self._model.state()
        else:
            hyper = self._model.model.state_dict()
            tensors |= {f"gp.{name}": value.clone() for name, value in hyper.items()}
        about = {
            "space": space_digest(self.space), "kind": self.kind, "metric": metric, "seed": str(self._seed),
            "quality": self.quality,
        }  # fmt: skip
        write_bytes(user_path(path), to_bytes(tensors, {"llmnas_predictor": json.dumps(about)}), seal)

    @classmethod
    def load(cls, path: str | Path, space: SearchSpace, metric: str) -> Predictor:
        """Read what `save` wrote.

        Raises:
            UserError: no such file, damaged, no predictor, or one of another space or metric.
        """
        path = user_path(path)
        try:
            with safe_open(regular(path), framework="pt") as file:
                about = as_kind(parse_json((file.metadata() or {})["llmnas_predictor"]), _About, path)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{path}: not a predictor ({error})") from None
        if about["space"] != space_digest(space):
            raise UserError(f"{path}: a predictor of another search space; train one on this space")
        if about["metric"] != metric:
            raise UserError(f"{path}: a predictor of {about['metric']}, not of {metric}")
        loaded = cls(space, about["kind"], int(about["seed"]))
        try:
            loaded._restore(tensors)
        except (KeyError, RuntimeError, ValueError, IndexError) as error:  # RuntimeError: torch, of shapes
            raise UserError(f"{path}: not a predictor ({' '.join(str(error).split())})") from None
        loaded.quality = about.get("quality")
        return loaded

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        codes, values = tensors["codes"], tensors["values"]
        self._told = (codes, values)
        if self.kind == "ensemble":
            self._model = Ensemble(1, self._seed)
            self._model.load(tensors)
            return
        self._model = GaussianProcess("hamming", self._layout, ())
        hyper = {name.removeprefix("gp."): value for name, value in tensors.items() if name.startswith("gp.")}
        self._model.restore(self._model.kernel.embed(codes), values, hyper)


def split(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions to train on and `share` of them held out, at random."""
    order = generator(seed, "held out").permutation(count)
    held = max(1, round(share * count))
    return np.sort(order[held:]), np.sort(order[:held])
