"""Keeping experts busy: what routers did in a step, the bias that balances them, and who never got a token.

Two ways of balance: a loss (`MoeSettings.balance = "loss"`, part of `Transformer.forward`), or a bias that is added to
the scores where experts are chosen and moved after every step towards even load, outside of the gradient
(Wang et al. 2024, "Auxiliary-Loss-Free Load Balancing Strategy", eq. 3).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from llmnas.nn.moe import Experts, Routing
from llmnas.supernet import Transformer
from llmnas.train.settings import MoeSettings

_LOG = logging.getLogger(__name__)


class Balance:
    """The routers of one training run; a model without experts costs nothing.

    Args:
        average: the mean of a tensor over processes, collective; one process needs none.
    """

    def __init__(
        self, model: Transformer, settings: MoeSettings, average: Callable[[Tensor], Tensor] = torch.clone
    ) -> None:
        self.experts = {i: layer.ffn for i, layer in enumerate(model.layers) if isinstance(layer.ffn, Experts)}
        self.settings, self._average = settings, average
        self._step: dict[int, list[Tensor]] = {i: [] for i in self.experts}
        self._entropy: list[Tensor] = []
        self._tokens = {i: torch.zeros_like(ffn.balance) for i, ffn in self.experts.items()}

    def loss_weights(self) -> dict[str, float]:
        """Arguments of `Transformer.forward`."""
        if not self.experts:
            return {}
        balance = self.settings.weight if self.settings.balance == "loss" else 0.0
        return {"balance_weight": balance, "z_weight": self.settings.z_weight}

    def add(self, routings: Mapping[int, Routing]) -> None:
        """Note what the routers did in one forward."""
        for i, routing in routings.items():
            excess = torch.full_like(self._tokens[i], torch.nan)
            excess[: len(routing.load)] = routing.load * len(routing.load)
            self._step[i].append(excess)
            self._tokens[i][: len(routing.load)] += routing.load
            self._entropy.append(routing.entropy)

    def end_step(self) -> dict[str, float]:
        """Move the biases and return the step's statistics; collective.

        Returns:
            Greatest load over even load, mean entropy (nats a token) and dropped assignments (none, ever).
        """
        found: dict[str, float] = {}
        worst = []
        for i, loads in self._step.items():
            if not loads:
                continue
            excess = self._average(torch.stack(loads).nanmean(0).nan_to_num(1.0))
            worst.append(float(excess.max()))
            if self.settings.balance == "bias":
                self.experts[i].balance += self.settings.bias_rate * torch.sign(1 - excess)
            loads.clear()
        if worst:
            entropy = self._average(torch.stack(self._entropy).mean())
            found = {"expert_load_max": max(worst), "router_entropy": float(entropy), "expert_tokens_dropped": 0.0}
            self._entropy.clear()
        return found

    def state(self) -> dict[str, np.ndarray]:
        """What every expert got so far, by layer, the same on every process; collective."""
        return {f"layer_{i}": self._average(tokens).cpu().numpy() for i, tokens in self._tokens.items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Inverse of `state`, so that a run that was cut off and went on is one run."""
        for i, tokens in self._tokens.items():
            if f"layer_{i}" in state:
                tokens.copy_(torch.from_numpy(state[f"layer_{i}"]))

    def warn_of_idle(self) -> list[tuple[int, list[int]]]:
        """(layer, experts) that got no token in the whole run; each layer is logged as a warning. Collective."""
        idle = []
        for i, tokens in self._tokens.items():
            never = (self._average(tokens) == 0).nonzero().flatten().tolist()
            if never:
                idle.append((i, never))
                _LOG.warning("layer %d: experts %s got no token in the whole run", i, never)
        return idle
