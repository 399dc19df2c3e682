"""What routers learnt: on real text, who gets the tokens, what experts add, and which of them say the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llmnas.nn.moe import Experts
from llmnas.space.architecture import Architecture, LayerSpec
from llmnas.supernet.model import Transformer

_SAMPLE = 512  # tokens of a layer on which all its experts are compared


@dataclass(frozen=True)
class RouterStudy:
    """One layer with a router, of E experts and K a token.

    Attributes:
        load: [E] share of the assignments.
        contribution: [E] share of what the experts add: the root of the summed squared norms of their weighted
            outputs (load times output norm), over the sum of all.
        entropy: mean entropy of a token's scores in nats; ln E is an indifferent router.
        mass: [K] mean share of a token's weight that its first 1, 2, ... K choices carry.
        cosine: [E, E] of the outputs of two experts on the same tokens, whoever they were routed to.
        cka: [E, E] linear centred kernel alignment of the same outputs (Kornblith et al. 2019, eq. 4): 1 also
            where one is a rotation of the other.
    """

    load: Tensor
    contribution: Tensor
    entropy: float
    mass: Tensor
    cosine: Tensor
    cka: Tensor


@torch.no_grad()
def study_routers(model: Transformer, batches: Iterable[Tensor], arch: Architecture) -> dict[int, RouterStudy]:
    """Look at every layer of `arch` that has a router; empty where none has.

    Args:
        batches: tokens, each [batch, seq] int64.

    Raises:
        ValueError: no batch.
    """
    seen: dict[int, _Layer] = {}
    hooks = [
        layer.ffn.register_forward_hook(partial(_note, seen=seen, layer=i))
        for i, layer in enumerate(model.layers)
        if isinstance(layer.ffn, Experts)
    ]
    ran = False
    try:
        for batch in batches:
            model.hidden_states(batch, arch)
            ran = True
    finally:
        for hook in hooks:
            hook.remove()
    if not ran:
        raise ValueError("routers are looked at on at least one batch of text")
    return {i: found.study() for i, found in sorted(seen.items())}


def _note(module: nn.Module, args: tuple[Any, ...], _out: Any, *, seen: dict[int, _Layer], layer: int) -> None:
    x, spec = args
    if isinstance(module, Experts) and spec.experts > 1:
        seen.setdefault(layer, _Layer(module, spec)).add(x.flatten(0, -2))


class _Layer:
    """Sums over the tokens of one layer."""

    def __init__(self, module: Experts, spec: LayerSpec) -> None:
        self.module, self.spec = module, spec
        self.count, self.energy = torch.zeros(spec.experts), torch.zeros(spec.experts)
        self.mass = torch.zeros(spec.top_k)
        self.tokens, self.entropy = 0, 0.0
        self.sample = torch.empty(0)

    def add(self, tokens: Tensor) -> None:
        """Note what one forward did with its tokens [N, H]."""
        chosen, weight, routing = self.module.route(tokens, self.spec)
        for e in range(self.spec.experts):
            rows, place = (chosen == e).nonzero(as_tuple=True)
            out = weight[rows, place][:, None] * self.module.one(tokens[rows], self.spec, e)
            self.count[e] += len(rows)
            self.energy[e] += out.square().sum()
        shares = weight.sort(descending=True).values.cumsum(-1)
        self.mass += (shares / shares[:, -1:]).sum(0)
        self.tokens += len(tokens)
        self.entropy += float(routing.entropy) * len(tokens)
        missing = _SAMPLE - len(self.sample)
        if missing > 0:
            spread = tokens[:: max(1, len(tokens) // missing)][:missing]
            self.sample = spread if len(self.sample) == 0 else torch.cat([self.sample, spread])

    def study(self) -> RouterStudy:
        """The layer's figures."""
        size = self.energy.sqrt()
        outputs = torch.stack([self.module.one(self.sample, self.spec, e) for e in range(self.spec.experts)])
        return RouterStudy(
            load=self.count / self.count.sum(),
            contribution=size / size.sum().clamp_min(1e-30),
            entropy=self.entropy / self.tokens,
            mass=self.mass / self.tokens,
            cosine=_cosine(outputs),
            cka=_cka(outputs),
        )


def _cosine(outputs: Tensor) -> Tensor:
    """[E, N, H] -> [E, E]."""
    flat = nn.functional.normalize(outputs.flatten(1), dim=1)
    return flat @ flat.T


def _cka(outputs: Tensor) -> Tensor:
    """[E, N, H] -> [E, E]: |X^T Y|_F^2 / (|X^T X|_F |Y^T Y|_F) of centred X, Y."""
    centred = outputs - outputs.mean(1, keepdim=True)
    cross = torch.einsum("anh,bnk->abhk", centred, centred).flatten(2).square().sum(-1)
    own = cross.diagonal().sqrt()
    return cross / (own[:, None] * own[None]).clamp_min(1e-30)
