"""Alpha while it is trained: its optimizer, its history, and the point that early stopping goes back to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from llmnas.space import SearchSpace
from llmnas.supernet.mixture import first_alphas, weights_of
from llmnas.train.darts_settings import DartsSettings
from llmnas.train.spectrum import stopping_point

_BETAS = (0.5, 0.999)  # of Adam, as in the authors' code


class AlphaTraining:
    """The logits of every decision, `[rows, choices]` float32 each, with Adam on them.

    Attributes:
        values: by the name of the decision.
        eigenvalues: one of every measurement so far.
    """

    def __init__(self, space: SearchSpace, settings: DartsSettings, seed: int, device: torch.device) -> None:
        self.settings, self._space = settings, space
        first = first_alphas(space, seed)
        self.values = {name: alpha.detach().to(device).requires_grad_() for name, alpha in first.items()}
        self.eigenvalues: list[float] = []
        self._snapshots: list[Tensor] = []  # all values in one row, at every measurement
        self._optimizer = torch.optim.Adam(
            self.parameters(), lr=settings.alpha_lr, betas=_BETAS, weight_decay=settings.alpha_decay
        )
        for alpha in self.parameters():  # the moments exist from the start, so that there is one layout to restore
            self._optimizer.state[alpha] = {
                "step": torch.zeros(()), "exp_avg": torch.zeros_like(alpha), "exp_avg_sq": torch.zeros_like(alpha),
            }  # fmt: skip

    def parameters(self) -> list[Tensor]:
        """The logits in a fixed order."""
        return list(self.values.values())

    @property
    def stopped(self) -> int | None:
        """The measurement (from 0) whose alpha is the result; None while the search goes on."""
        return stopping_point(self.eigenvalues, self.settings.window) if self.settings.early_stop else None

    def step(self, gradients: Sequence[Tensor]) -> float:
        """One update; returns the norm of the gradient. One that is not finite changes nothing."""
        norm = float(torch.cat([g.flatten() for g in gradients]).norm())
        if norm < float("inf"):
            for alpha, gradient in zip(self.parameters(), gradients, strict=True):
                alpha.grad = gradient
            self._optimizer.step()
            self._optimizer.zero_grad()
        return norm

    @torch.no_grad()
    def measured(self, eigenvalue: float) -> None:
        """Note a measurement; where it ends the search, alpha goes back."""
        self.eigenvalues.append(eigenvalue)
        self._snapshots.append(torch.cat([alpha.flatten() for alpha in self.parameters()]).clone())
        if self.stopped is not None:
            for alpha, old in zip(self.parameters(), self.at(self.stopped).values(), strict=True):
                alpha.copy_(old)

    def at(self, measurement: int) -> dict[str, Tensor]:
        """Alpha as it was at a measurement, by the name of the decision."""
        pieces = torch.split(self._snapshots[measurement], [alpha.numel() for alpha in self.parameters()])
        return {name: p.view_as(alpha) for (name, alpha), p in zip(self.values.items(), pieces, strict=True)}

    def weights(self, measurement: int | None = None) -> dict[str, Tensor]:
        """softmax(alpha) of every decision, now or at a measurement, without gradients."""
        alphas = self.values if measurement is None else self.at(measurement)
        return {name: weight.detach() for name, weight in weights_of(self._space, alphas).items()}

    def state(self) -> dict[str, np.ndarray]:
        """Everything that a later start needs."""
        found = {f"alpha.{name}": alpha.detach() for name, alpha in self.values.items()}
        for name, alpha in self.values.items():
            found |= {f"adam.{name}.{key}": value for key, value in self._optimizer.state[alpha].items()}
        if self._snapshots:
            found["snapshots"] = torch.stack(self._snapshots)
        arrays = {name: value.cpu().numpy() for name, value in found.items()}
        return {**arrays, "eigenvalues": np.array(self.eigenvalues)}

    @torch.no_grad()
    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Inverse of `state`."""
        for name, alpha in self.values.items():
            alpha.copy_(torch.from_numpy(state[f"alpha.{name}"]))
            for key, value in self._optimizer.state[alpha].items():
                value.copy_(torch.from_numpy(state[f"adam.{name}.{key}"]))
        self.eigenvalues = state["eigenvalues"].tolist()
        device = self.parameters()[0].device
        self._snapshots = list(torch.from_numpy(state["snapshots"]).to(device)) if self.eigenvalues else []
