"""Steps that leave no trace: what a step costs is measured on the run's own networks and tokens, and nothing moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llmnas.space import Architecture
from llmnas.supernet import Losses
from llmnas.supernet.mixture import SoftArchitecture
from llmnas.train.engine import Engine, Step


class Rehearsal:
    """Stands in for the engine: forward and backward on aliases of the weights, gradients thrown away, no update.

    The weights are shared, not copied. No hook, counter or buffer of DeepSpeed's hears of it. For weights that are
    whole in this process (ZeRO stage 0 to 2, experts not divided).
    """

    def __init__(self, engine: Engine) -> None:
        self.processes, self.device = engine.processes, engine.device
        self.local_batch, self.micro_batch = engine.local_batch, engine.micro_batch
        self._model = _Within(engine.module)
        self._weights = {
            f"model.{name}": weight.detach().requires_grad_(weight.requires_grad)
            for name, weight in engine.module.named_parameters()
        }

    def forward(self, tokens: Tensor, network: Architecture | SoftArchitecture, **options: Any) -> Losses:
        """`Engine.forward`."""
        losses: Losses = torch.func.functional_call(self._model, self._weights, (tokens, network), options)
        return losses

    def backward(self, loss: Tensor) -> None:
        """`Engine.backward`, for its time."""
        wanted = [weight for weight in self._weights.values() if weight.requires_grad]
        torch.autograd.grad(loss, wanted, allow_unused=True)

    def step(self, lr: float, weight_decay: float, networks: Sequence[Architecture] | None = None) -> Step:  # noqa: ARG002
        """`Engine.step` without an update."""
        return Step(applied=True, grad_norm=0.0)


class _Within(nn.Module):
    """Calls a model without the hooks that an engine puts around it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *arguments: Any, **options: Any) -> Any:
        return self.model.forward(*arguments, **options)
