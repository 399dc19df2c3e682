"""Validation loss of a network on fixed windows of text."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from llmnas.space import Architecture
from llmnas.supernet import Transformer, document_numbers, split_windows, token_losses


class _Hidden(nn.Module):
    """`Transformer.hidden_states` as a forward, which is what `functional_call` calls."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, arch: Architecture, documents: Tensor | None) -> Tensor:
        return self.model.hidden_states(tokens, arch, documents)


def hidden_states(
    model: Transformer,
    arch: Architecture,
    tokens: Tensor,
    values: Mapping[str, Tensor],
    eos_id: int | None = None,
) -> Tensor:
    """[batch, seq] -> [batch, seq, hidden], with `values` in the place of buffers of those names.

    Args:
        eos_id: the token that ends a document, where attention stays within documents.
    """
    documents = document_numbers(tokens, eos_id)
    if not values:
        return model.hidden_states(tokens, arch, documents)
    named = {f"model.{name}": value for name, value in values.items()}
    found: Tensor = functional_call(_Hidden(model), named, (tokens, arch, documents))
    return found


@torch.no_grad()
def window_losses(
    model: Transformer,
    arch: Architecture | None,
    windows: np.ndarray,
    batch: int = 16,
    values: Mapping[str, Tensor] | None = None,
    eos_id: int | None = None,
) -> np.ndarray:
    """Mean next-token cross entropy of every window, in nats a token.

    Args:
        model: a supernet or a stand-alone network; its mode and gradients stay as they are.
        arch: the sub-network, or None for the largest.
        windows: [count, seq + 1] int64, each with a target, see `split_windows`.
        batch: windows at once.
        values: statistics of the candidate, which stand for the model's (`recalibrate`).
        eos_id: the token that ends a document, for a model trained with attention within documents.

    Returns:
        [count] float64.
    """
    arch = arch or model.envelope
    device = model.embedding.weight.device
    head = model.head_weight(arch)
    found = []
    for first in range(0, len(windows), batch):
        tokens, targets = split_windows(torch.from_numpy(windows[first : first + batch]).to(device))
        hidden = hidden_states(model, arch, tokens, values or {}, eos_id)
        losses = token_losses(hidden.flatten(0, 1), head, targets.flatten())  # 0 where there is no target
        counted = (targets >= 0).sum(1)
        found.append((losses.view(len(tokens), -1).double().sum(1) / counted).cpu().numpy())
    return np.concatenate(found)


QUALITY = ("val_loss", "perplexity", "bits_per_byte")
"""The names of one loss: an order by one of them is the order by all."""


def quality(val_loss: float, bytes_per_token: float) -> dict[str, float]:
    """The usual forms of a loss: nats a token, perplexity, bits a byte of UTF-8 text."""
    return {
        "val_loss": val_loss,
        "perplexity": math.exp(min(val_loss, 700.0)),
        "bits_per_byte": val_loss / bytes_per_token / math.log(2),
    }
