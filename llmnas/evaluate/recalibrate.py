"""Statistics that belong to a candidate, not to the supernet: taken anew on calibration text before it is judged.

The supernet's own are a mixture over all networks it was trained as. Two sorts of module hold some:

- routers whose experts are balanced by a bias (`train.moe.balance: bias`): the bias that evens the load of eight
  experts does not even that of two;
- batch normalisation, in a layer that a user put in (Yu and Huang 2019, "Universally slimmable networks", section 3.3:
  without new statistics sub-networks cannot be judged at all).

Nothing else does: activations of low-bit layers are scaled for each token by itself, so there is no static scale, and
RMSNorm keeps none. The model is never written to: values are returned, and `window_losses` runs the model with them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from llmnas.evaluate.quality import hidden_states
from llmnas.space import Architecture, LayerSpec
from llmnas.supernet import Experts, Transformer

_ROUNDS = 4  # passes over the text where there are routers: what a layer sees depends on the routers before it
_STEPS, _FIRST_STEP, _DECAY = 200, 0.1, 0.97  # of a bias, in units of a score


def statistics(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold statistics, by name: batch norms that track, routers whose bias was ever moved."""
    return {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, _BatchNorm) and module.running_mean is not None)
        or (isinstance(module, Experts) and bool(module.balance.any()))
    }


@torch.no_grad()
def recalibrate(
    model: Transformer,
    arch: Architecture | None,
    windows: np.ndarray,
    batch: int = 16,
    eos_id: int | None = None,
) -> dict[str, Tensor]:
    """The statistics of one candidate, by their names in `model.state_dict()`; empty where nothing holds any.

    Args:
        arch: the candidate, or None for the largest.
        windows: [count, seq + 1] int64 of calibration text; the last token of each is not read.
        batch: windows at once.
        eos_id: as in `window_losses`.

    Raises:
        ValueError: a batch norm is in training mode, where it would write to its own statistics.
    """
    holders = statistics(model)
    if not holders:
        return {}
    training = [name for name, module in holders.items() if isinstance(module, _BatchNorm) and module.training]
    if training:
        raise ValueError(f"{training[0]} is in training mode; call model.eval() before candidates are judged")
    routers = any(isinstance(module, Experts) for module in holders.values())
    values: dict[str, Tensor] = {}
    for _ in range(_ROUNDS if routers else 1):
        seen = {name: _watch_of(module) for name, module in holders.items()}
        with _watching(holders, seen):
            for first in range(0, len(windows), batch):
                tokens = torch.from_numpy(windows[first : first + batch, :-1]).to(model.embedding.weight.device)
                hidden_states(model, arch or model.envelope, tokens, values, eos_id)
        for name, watch in seen.items():
            values |= {f"{name}.{key}": value for key, value in watch.values(values.get(f"{name}.balance")).items()}
    return values


class _Moments:
    """Mean and variance of every channel over all that a batch norm was given (Wu and Johnson 2021, section 3)."""

    def __init__(self, module: _BatchNorm) -> None:
        self.module = module
        self.count = 0
        self.total, self.squares = (torch.zeros(module.num_features, dtype=torch.float64) for _ in range(2))

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:  # noqa: ARG002
        """Note the input; what comes after sees it normalised by its own statistics, not by the stale ones."""
        x = inputs[0]
        flat = x.double().transpose(0, 1).flatten(1).cpu()
        self.count += flat.shape[1]
        self.total += flat.sum(1)
        self.squares += flat.square().sum(1)
        return F.batch_norm(x, None, None, self.module.weight, self.module.bias, training=True, eps=self.module.eps)

    def values(self, balance: Tensor | None) -> dict[str, Tensor]:  # noqa: ARG002
        """New buffers; none where the candidate does not run this module."""
        if self.count < 2 or self.module.running_mean is None:
            return {}
        mean = self.total / self.count
        variance = (self.squares / self.count - mean.square()) * self.count / (self.count - 1)
        like = self.module.running_mean
        return {"running_mean": mean.to(like), "running_var": variance.clamp_min(0).to(like)}


class _Scores:
    """The scores that a router gave, and the bias that evens the load under them."""

    def __init__(self, module: Experts) -> None:
        self.module = module
        self.scores: list[Tensor] = []
        self.top_k = 1

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, LayerSpec], output: object) -> None:  # noqa: ARG002
        """Note what the router says of the layer's input."""
        x, spec = inputs
        if spec.experts > 1:
            self.top_k = spec.top_k
            self.scores.append(self.module.scores(x.flatten(0, -2), spec)[1])

    def values(self, balance: Tensor | None) -> dict[str, Tensor]:
        """A new bias; none where the candidate has no router here."""
        if not self.scores:
            return {}
        bias = (self.module.balance if balance is None else balance).clone()
        scores = torch.cat(self.scores)
        active = scores.shape[1]
        bias[:active] = even_bias(scores, self.top_k, bias[:active])
        return {"balance": bias}


_Watch = _Moments | _Scores


def _watch_of(module: nn.Module) -> _Watch:
    if isinstance(module, Experts):
        return _Scores(module)
    if isinstance(module, _BatchNorm):
        return _Moments(module)
    raise TypeError(f"{type(module).__name__} holds no statistics that are known here")


@contextlib.contextmanager
def _watching(holders: Mapping[str, nn.Module], watches: Mapping[str, _Watch]) -> Iterator[None]:
    """Let the watches see what their modules are given."""
    handles = [module.register_forward_hook(watches[name]) for name, module in holders.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def even_bias(scores: Tensor, top_k: int, start: Tensor) -> Tensor:
    """The bias [E] under which every expert is chosen about equally often.

    The rule of training, b += rate sign(mean load - load) (Wang et al. 2024, eq. 3), with a rate that shrinks.

    Args:
        scores: [N, E].
        start: [E].
    """
    bias, rate = start.clone(), _FIRST_STEP
    experts = scores.shape[1]
    for _ in range(_STEPS):
        chosen = (scores + bias).topk(top_k, sorted=False).indices
        load = chosen.flatten().bincount(minlength=experts) / chosen.numel()
        bias += rate * torch.sign(1 - load * experts)
        rate *= _DECAY
    return bias
