"""Expert parallelism: the experts of every layer divided among the processes of a group, tokens sent to them and back.

Expert e lives with process e mod P of its group, so that the leading experts of any sub-network are spread evenly and
are the leading ones of every process again: slicing stays what it is. DeepSpeed makes the groups and averages the
gradients (`engine.py`); what is here is the exchange, which its own layers cannot do for a number of experts, a k and
sizes that change from step to step (docs/moe.md).

Rows go with two all-to-alls whose sizes are known only when the router has chosen: nothing is dropped, nothing is
padded (GShard, Lepikhin et al. 2020, without capacity).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save
from torch import Tensor, nn

from llmnas.errors import UserError
from llmnas.files import Seal, write_bytes
from llmnas.nn.expert_linear import ExpertLinear
from llmnas.nn.moe import Experts
from llmnas.supernet import Box
from llmnas.supernet.old_names import modern_name


class _AllToAll(torch.autograd.Function):
    """Rows [N, H] to their processes; the gradient takes the way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        out = rows.new_empty(sum(received), rows.shape[1])
        dist.all_to_all_single(out, rows.contiguous(), received, sent, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        back = grad.new_empty(sum(ctx.sent), grad.shape[1])
        dist.all_to_all_single(back, grad.contiguous(), ctx.sent, ctx.received, group=ctx.group)
        return back, None, None, None


@dataclass(frozen=True)
class ExpertExchange:
    """Runs the experts of one layer wherever they are; collective in its group.

    Attributes:
        group: of processes that hold all experts together.
        rank, size: this process in it.
    """

    group: Any
    rank: int
    size: int

    def __call__(self, rows: Tensor, counts: Tensor, run: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Rows [N, H] sorted by expert, `counts` [E] of them each -> what their experts make of them, in that order.

        Args:
            run: the same for the experts that this process holds.
        """
        experts = torch.arange(len(counts), device=rows.device)
        slots = -(-len(counts) // self.size)  # experts that a process may hold
        table = counts.new_zeros(self.size, slots)
        table[experts % self.size, experts // self.size] = counts
        arriving = torch.empty_like(table)
        dist.all_to_all_single(arriving, table, group=self.group)
        sent, received = table.sum(1).tolist(), arriving.sum(1).tolist()
        leaving = (experts % self.size * slots + experts // self.size).repeat_interleave(counts).argsort(stable=True)
        arrived = _AllToAll.apply(rows[leaving], sent, received, self.group)  # type: ignore[no-untyped-call]
        own = torch.arange(slots, device=rows.device).repeat(self.size).repeat_interleave(arriving.flatten())
        order = own.argsort(stable=True)
        held = len(range(self.rank, len(counts), self.size))
        out = run(arrived[order], arriving.sum(0)[:held]) if held else arrived[order]
        back = _AllToAll.apply(out[order.argsort()], received, sent, self.group)  # type: ignore[no-untyped-call]
        found: Tensor = back[leaving.argsort()]
        return found


def require_divisible(model: nn.Module, size: int, processes: int) -> None:
    """Refuse what expert parallelism cannot divide.

    Raises:
        UserError: no experts, or a number of them or of processes that `size` does not divide.
    """
    if processes % size:
        raise UserError(f"train.moe.expert_parallel = {size} does not divide the {processes} processes")
    layers = _layers(model)
    if not layers:
        raise UserError(f"train.moe.expert_parallel = {size}: the space has no experts (space.experts)")
    for i, experts in layers:
        held = experts.router.out_features
        if held % size:
            raise UserError(f"train.moe.expert_parallel = {size} does not divide the {held} experts of layer {i}")


def divide(model: nn.Module, exchange: ExpertExchange, group_name: str) -> None:
    """Keep every P-th expert, and mark them so that DeepSpeed averages their gradients over other processes."""
    for _, experts in _layers(model):
        for layer, name, whole in _by_expert(experts):
            part = whole.detach()[exchange.rank :: exchange.size].clone()
            if isinstance(whole, nn.Parameter):
                part = nn.Parameter(part)
                part.allreduce = False  # type: ignore[attr-defined]
                part.group_name = group_name  # type: ignore[attr-defined]
            setattr(layer, name, part)
        experts.exchange = exchange


@torch.no_grad()
def unite(model: nn.Module, exchange: ExpertExchange) -> None:
    """Make every process whole again, one weight at a time, in main memory; collective."""
    for _, experts in _layers(model):
        for layer, name, held in _by_expert(experts):
            part = held.detach().contiguous()
            parts = [torch.empty_like(part) for _ in range(exchange.size)]
            dist.all_gather(parts, part, group=exchange.group)
            whole = torch.stack([p.cpu() for p in parts], 1).flatten(0, 1)
            setattr(layer, name, nn.Parameter(whole) if isinstance(held, nn.Parameter) else whole)
        experts.exchange = None


def divided(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that differ between the processes of a group, by name."""
    return {name: p for name, p in model.named_parameters() if not getattr(p, "allreduce", True)}


def own_boxes(
    model: nn.Module, boxes: Mapping[str, tuple[Box, ...]], exchange: ExpertExchange
) -> dict[str, tuple[Box, ...]]:
    """Boxes of whole weights as boxes of what this process holds: of experts every P-th, from its rank on."""

    def held(expert: int) -> int:
        return len(range(exchange.rank, expert, exchange.size))

    found = dict(boxes)
    for name in divided(model).keys() & boxes.keys():
        own = [((held(box[0][0]), held(box[0][1])), *box[1:]) for box in boxes[name]]
        found[name] = tuple(box for box in own if box[0][0] < box[0][1])
    return found


def clip(parameters: list[nn.Parameter], limit: float, exchange: ExpertExchange | None) -> Tensor:
    """Scale gradients down to a greatest norm; returns the norm before, over all experts wherever they are."""
    if exchange is None:
        return nn.utils.clip_grad_norm_(parameters, limit)
    own = [p.grad for p in parameters if p.grad is not None and not getattr(p, "allreduce", True)]
    whole = [p.grad for p in parameters if p.grad is not None and getattr(p, "allreduce", True)]
    squares = nn.utils.get_total_norm(own).square()
    dist.all_reduce(squares, group=exchange.group)
    norm = (squares + nn.utils.get_total_norm(whole).square()).sqrt()
    nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


def save_experts(model: nn.Module, optimizer: Any, exchange: ExpertExchange, folder: Path, seal: Seal) -> None:
    """Write this process's experts and their moments; one process of each place in a group should."""
    found: dict[str, Tensor] = {}
    for name, parameter in divided(model).items():
        found[name] = parameter.detach()
        found |= {f"{name}:{moment}": value for moment, value in optimizer.state[parameter].items()}
    found |= _scales(model)
    plain = {name: value.detach().cpu().contiguous() for name, value in found.items()}
    write_bytes(_file(folder, exchange.rank), save(plain), seal)  # safetensors' writer calls a full disk no OSError


@torch.no_grad()
def load_experts(model: nn.Module, optimizer: Any, exchange: ExpertExchange, folder: Path) -> None:
    """Read what `save_experts` wrote over what DeepSpeed restored (the experts of process 0).

    Raises:
        UserError: the checkpoint divides its experts among another number of processes.
    """
    stored = load_file(_file(folder, exchange.rank))
    found = {}
    for stored_name, value in stored.items():
        name, colon, moment = stored_name.partition(":")
        found[f"{modern_name(name)}{colon}{moment}"] = value
    for name, parameter in divided(model).items():
        parameter.copy_(found[name])
        for moment, value in optimizer.state[parameter].items():
            value.copy_(found[f"{name}:{moment}"])
    for name, scale in _scales(model).items():
        scale.copy_(found[name])


def require_parts(folder: Path, size: int) -> None:
    """Refuse a checkpoint whose experts are divided otherwise.

    Raises:
        UserError: with both numbers.
    """
    parts = max(1, len(list(folder.glob("experts-part-*.safetensors"))))
    if parts != size:
        raise UserError(
            f"{folder}: its experts are divided among {parts} processes, but train.moe.expert_parallel = {size}; "
            f"use {parts}"
        )


def _file(folder: Path, rank: int) -> Path:
    return folder / f"experts-part-{rank}.safetensors"


def _by_expert(experts: Experts) -> list[tuple[nn.Module, str, Tensor]]:
    """What belongs to single experts, with its layer and name: their weights, and the scales of low-bit ones."""
    layers = [layer for layer in experts.children() if isinstance(layer, ExpertLinear)]
    return [(layer, *named) for layer in layers for named in (*layer.named_parameters(), *layer.named_buffers())]


def _scales(model: nn.Module) -> dict[str, Tensor]:
    """Scales of the experts of this process, by their names in the model."""
    return {
        f"{path}.{name}": value
        for path, layer in model.named_modules()
        if isinstance(layer, ExpertLinear)
        for name, value in layer.named_buffers()
    }


def _layers(model: nn.Module) -> list[tuple[int, Experts]]:
    return [(i, layer.ffn) for i, layer in enumerate(model.layers) if isinstance(layer.ffn, Experts)]  # type: ignore
