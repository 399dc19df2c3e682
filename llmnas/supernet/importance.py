"""Which parts matter: scores from calibration text, and a reordering after which the leading ones are the best.

A part's score is the size of what it contributes: the root mean square, over calibration tokens, of its activation
times the norm of the weights that read it. That is the activation-based importance of Minitron (Muralidharan et
al. 2024, section 2.2: heads, FFN channels, hidden channels) weighed as in Wanda (Sun et al. 2023, eq. 1: |W| times
the norm of the input), so that a loud channel that nobody reads does not count. Experts: load times output norm.

Every permutation here leaves the largest network's function as it is. Pairs of rotary channels stay in their
order, which says which frequencies a smaller head keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from llmnas.nn.attention import Attention
from llmnas.nn.elastic_linear import ElasticLinear, grids, role
from llmnas.nn.ffn import FeedForward
from llmnas.nn.kernels import mlgru_scan
from llmnas.nn.lowbit import values
from llmnas.nn.mlgru import MLGRU
from llmnas.nn.moe import Experts
from llmnas.space.architecture import Architecture, LayerSpec
from llmnas.supernet.model import Transformer
from llmnas.supernet.windows import split_windows

Add = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class Importance:
    """Scores, the higher the more the loss needs the part.

    Attributes:
        hidden: [H] channels of the residual stream.
        groups: by the name of a mixer: [K] KV heads (with their queries).
        queries: by the name of a mixer: [K, Q] queries within their group.
        channels: by the name of a feed-forward: [F], or [E, F] of a mixture.
        experts: by the name of a mixture: [E].
    """

    hidden: Tensor
    groups: dict[str, Tensor]
    queries: dict[str, Tensor]
    channels: dict[str, Tensor]
    experts: dict[str, Tensor]


@torch.no_grad()
def importance(model: Transformer, batches: Iterable[Tensor], arch: Architecture | None = None) -> Importance:
    """Score the parts of a network on calibration text.

    Args:
        model: a supernet or a stand-alone model.
        batches: tokens, each [batch, seq] int64.
        arch: what runs; None for the largest. Parts that it does not use score 0.

    Raises:
        ValueError: no batch.
    """
    squares: dict[str, Tensor] = {}
    tokens = 0

    def add(key: str, contribution: Tensor) -> None:
        squares[key] = squares.get(key, torch.zeros_like(contribution)) + contribution

    hooks = [
        module.register_forward_hook(partial(_note, name=name, add=add))
        for name, module in model.named_modules()
        if isinstance(module, Attention | MLGRU | FeedForward | Experts)
    ]
    try:
        for batch in batches:
            hidden = model.hidden_states(batch, arch or model.envelope)
            add("hidden:", _read(hidden, model.head_weight(model.envelope)))
            tokens += batch.numel()
    finally:
        for hook in hooks:
            hook.remove()
    if not tokens:
        raise ValueError("importance needs at least one batch of calibration text")

    def part(kind: str) -> dict[str, Tensor]:
        return {
            key.removeprefix(f"{kind}:"): (total / tokens).sqrt()
            for key, total in squares.items()
            if key.startswith(f"{kind}:")
        }

    queries = part("queries")
    groups = {name: score.square().sum(1).sqrt() for name, score in queries.items()}
    return Importance(part("hidden")[""], groups, queries, part("channels"), part("experts"))


def _read(x: Tensor, *weights: Tensor) -> Tensor:
    """Sum over tokens of x_c^2 times the squared norm of the weights [.., H] that read channel c, `[H]`."""
    norm = torch.stack([w.flatten(0, -2).square().sum(0) for w in weights]).sum(0)
    found = torch.zeros_like(norm)
    width = x.shape[-1]
    found[:width] = x.flatten(0, -2).square().sum(0) * norm[:width]
    return found


def _note(module: nn.Module, args: tuple[Any, ...], _out: Any, *, name: str, add: Add) -> None:
    """Score what one mixer or feed-forward read and wrote; `args` are those of its forward."""
    x, spec = values(args[0]), args[1]
    if isinstance(module, Attention):
        add("hidden:", _read(x, module.q.weight, module.k.weight, module.v.weight))
        add(f"queries:{name}", _heads(values(module.heads(*args)), module.o, spec))
    elif isinstance(module, MLGRU):
        add("hidden:", _read(x, module.forget.weight, module.candidate.weight, module.output_gate.weight))
        seen = module.inputs(args[0], spec)
        hidden = mlgru_scan(*module.gates(seen, spec))
        add(f"queries:{name}", _heads(values(module.gated(hidden, seen, spec)), module.o, spec))
    elif isinstance(module, FeedForward):
        add("hidden:", _read(x, module.gate.weight, module.up.weight))
        add(f"channels:{name}", _channels(values(module.gated(args[0], spec)), module.down.weight))
    elif isinstance(module, Experts):
        add("hidden:", _read(x, module.gate.weight, module.up.weight))
        _note_experts(module, x.flatten(0, -2), spec, name, add)


def _heads(mixed: Tensor, o: ElasticLinear, spec: LayerSpec) -> Tensor:
    """Energy that every query head writes to the residual stream, `[K, Q]` of the stored grid."""
    sizes = (spec.kv_heads, spec.queries_per_group, spec.head_dim)
    energy = mixed.flatten(0, -2).square().sum(0).view(sizes)
    weight = o.weight.view(o.grid)
    found = weight.new_zeros(o.columns[:2])
    norm = weight[:, : sizes[0], : sizes[1], : sizes[2]].square().sum(0)
    found[: sizes[0], : sizes[1]] = (energy * norm).sum(-1)
    return found


def _channels(gated: Tensor, down: Tensor) -> Tensor:
    """Energy that every channel writes to the residual stream, `[F]` of the stored size."""
    found = down.new_zeros(down.shape[-1])
    found[: gated.shape[-1]] = gated.flatten(0, -2).square().sum(0) * down.square().sum(0)[: gated.shape[-1]]
    return found


def _note_experts(module: Experts, tokens: Tensor, spec: LayerSpec, name: str, add: Add) -> None:
    """Channels of each expert on the tokens that chose it, and the experts by load times the norm of their output."""
    chosen, weight, _ = module.route(tokens, spec) if spec.experts > 1 else (None, None, None)
    down = module.down.weight
    channels, experts = down.new_zeros(down.shape[0], down.shape[2]), down.new_zeros(down.shape[0])
    for e in range(spec.experts):
        rows = tokens if chosen is None else tokens[(chosen == e).any(-1)]
        everyone = torch.tensor([len(rows)], dtype=torch.int32, device=rows.device)
        gated = values(module.gated(rows, spec, everyone, e))
        channels[e] = _channels(gated, down[e])
        if chosen is not None and weight is not None:
            share = weight[chosen == e][:, None]
            out = share * (gated @ down[e, : tokens.shape[-1], : spec.ffn_size].T)
            experts[e] = out.square().sum()
    add(f"channels:{name}", channels)
    add(f"experts:{name}", experts)


@torch.no_grad()
def reorder(model: Transformer, scores: Importance) -> None:
    """Sort every part by its score, best first, in place; the largest network computes what it did."""
    modules = dict(model.named_modules())
    for name, score in scores.queries.items():
        for group, row in enumerate(score):
            _permute(modules[name], {"Q": _best(row)}, group)
    for name, score in scores.groups.items():
        _permute(modules[name], {"K": _best(score)})
    for name, score in scores.channels.items():
        _reorder_channels(modules[name], score)
    reorder_experts(model, scores)
    _reorder_hidden(model, _best(scores.hidden))


@torch.no_grad()
def reorder_experts(model: Transformer, scores: Importance) -> None:
    """Sort the experts of every layer by their score, best first, in place; nothing else moves."""
    modules = dict(model.named_modules())
    for name, score in scores.experts.items():
        order = _best(score)
        mixture = cast(Experts, modules[name])
        for tensor in (*(mixture.get_parameter(f"{part}.weight") for part in _MATRICES), mixture.balance):
            tensor.copy_(tensor[order])


_MATRICES = ("gate", "up", "down", "router")


def _best(score: Tensor) -> Tensor:
    return score.argsort(descending=True, stable=True)


# axes of the weights of a mixer, by name
_AXES = {
    "q.weight": "KQDH", "k.weight": "KDH", "v.weight": "KDH", "o.weight": "HKQD",
    "q.bias": "KQD", "k.bias": "KD", "v.bias": "KD", "q_norm": "KQD", "k_norm": "KD",
    "forget.weight": "KQDH", "candidate.weight": "KQDH", "output_gate.weight": "KQDH",
    "lower": "KQD", "inner_norm": "KQD",
}  # fmt: skip


def _permute(module: nn.Module, orders: dict[str, Tensor], group: int | None = None) -> None:
    """Permute axes of a mixer's weights; within one KV group where `group` is given."""
    shapes = grids(module)
    for name, parameter in module.named_parameters():
        weight = parameter.view(shapes.get(name, parameter.shape))
        axes = _AXES.get(name, "") if weight.dim() > 1 else ""  # one gain for all heads stays
        for axis, order in orders.items():
            if axis in axes:
                block = weight if group is None else weight.select(axes.index("K"), group)
                left = axes if group is None else axes.replace("K", "")
                block.copy_(block.index_select(left.index(axis), order))


def _reorder_channels(module: nn.Module, score: Tensor) -> None:
    rows = score[None] if score.dim() == 1 else score
    inner_norm = dict(module.named_parameters(recurse=False)).get("inner_norm")
    if inner_norm is not None:  # one gain for all experts: one order for all
        rows = rows.sum(0, keepdim=True).expand_as(rows)
        inner_norm.copy_(inner_norm[_best(rows[0])])
    for expert, row in enumerate(rows):
        order = _best(row)
        for name, axis in (("gate", 0), ("up", 0), ("down", 1)):
            weight = module.get_parameter(f"{name}.weight")
            block = weight[expert] if weight.dim() == 3 else weight
            block.copy_(block.index_select(axis, order))


def _reorder_hidden(model: Transformer, order: Tensor) -> None:
    size = model.envelope.hidden_size
    last = (
        "q",
        "k",
        "v",
        "forget",
        "candidate",
        "output_gate",
        "gate",
        "up",
        "router",
        "shared_gate",
        "embedding",
        "head",
    )
    first = ("o", "norm", "mixer_norm", "ffn_norm", "mixer_out_norm", "ffn_out_norm")
    for name, weight in model.named_parameters():
        kind = role(name)
        if kind in last or kind in first or kind == "down":
            axis = weight.dim() - 1 if kind in last else weight.dim() - 2 if kind == "down" else 0
            assert weight.shape[axis] == size, f"{name} has no hidden axis"
            weight.copy_(weight.index_select(axis, order))


@torch.no_grad()
def layer_importance(model: Transformer, batches: Sequence[Tensor]) -> list[float]:
    """By how much the loss (nats/token) grows when a layer is skipped, for every layer of the largest network."""
    whole = model.envelope

    def loss(arch: Architecture) -> float:
        halves = map(split_windows, batches)
        return sum(float(model(x, arch, targets=y).cross_entropy) for x, y in halves) / len(batches)

    full = loss(whole)
    return [
        loss(replace(whole, layers=(*whole.layers[:i], None, *whole.layers[i + 1 :]))) - full
        for i in range(len(whole.layers))
    ]
