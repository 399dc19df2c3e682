"""From a dense model to a mixture of experts (Komatsuzaki et al. 2023, "Sparse Upcycling", section 3).

Every expert begins as a copy of the dense feed-forward and the router as new. Copies that agree make the choice
indifferent: with weights that sum to one the network computes what the dense one did, whatever the router says.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from llmnas.errors import UserError
from llmnas.nn.moe import Experts
from llmnas.supernet import Transformer
from llmnas.train.warmstart import Pretrained


def upcycle(pretrained: Pretrained, model: Transformer) -> Pretrained:
    """A dense model in the terms of `model`, whose largest network has experts; unchanged where it has none.

    Channels that an expert has beyond the dense feed-forward keep the first two matrices of `model` and write nothing
    yet (a zero `down`): the function is the same, and they learn. So do shared experts.

    Args:
        pretrained: a dense model (or one with experts already, which is given back).
        model: with its initial weights, which the routers and shared experts keep.

    Raises:
        UserError: the router's weights do not sum to one, experts smaller than the dense feed-forward, or other depth.
    """
    largest = model.envelope
    if all(spec.experts == 1 for _, spec in largest.kept) or any(s.experts > 1 for _, s in pretrained.arch.kept):
        return pretrained
    if not model.base.norm_top_k:
        raise UserError(
            "upcycling: space.base.norm_top_k must be true: "
            "only weights that sum to one leave the dense model's function"
        )
    if largest.depth != pretrained.arch.depth:
        raise UserError(f"upcycling: the space has {largest.depth} layers, the dense model {pretrained.arch.depth}")
    weights, layers = dict(pretrained.weights), []
    for (i, spec), (_, dense) in zip(largest.kept, pretrained.arch.kept, strict=True):
        if spec.ffn_size < dense.ffn_size:
            raise UserError(
                f"upcycling: layer {i}: the largest ffn_size of the space is {spec.ffn_size}, less than the dense "
                f"model's {dense.ffn_size}"
            )
        ffn = model.layers[i].ffn
        assert isinstance(ffn, Experts)
        for name in ("gate", "up", "down"):
            key = f"layers.{i}.ffn.{name}.weight"
            weights[key] = _copies(weights[key], getattr(ffn, name).weight.detach(), name)
        own = dict(ffn.named_parameters())
        for name in ("router.weight", "shared_gate", *(f"shared.{part}.weight" for part in ("gate", "up", "down"))):
            new = own.get(name)
            if new is not None:
                initial = new.detach()
                weights[f"layers.{i}.ffn.{name}"] = (
                    torch.zeros_like(initial) if name == "shared.down.weight" else initial
                )
        mixture = {name: getattr(spec, name) for name in ("ffn_size", "experts", "top_k", "shared_experts")}
        layers.append(replace(dense, **mixture))
    return Pretrained(pretrained.base, replace(pretrained.arch, layers=tuple(layers)), weights)


def _copies(dense: Tensor, initial: Tensor, name: str) -> Tensor:
    """One matrix [out, in] as [experts, out, in] of the size of `initial`."""
    copies = torch.zeros_like(initial) if name == "down" else initial.clone()
    rows, columns = dense.shape
    copies[:, :rows, :columns] = dense
    return copies
