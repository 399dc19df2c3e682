"""Validation loss of a network on fixed windows of text."""

from __future__ import annotations

import math

import numpy as np
import torch

from llmnas.space import Architecture
from llmnas.supernet import Transformer, token_losses


@torch.no_grad()
def window_losses(model: Transformer, arch: Architecture | None, windows: np.ndarray, batch: int = 16) -> np.ndarray:
    """Mean next-token cross entropy of every window, in nats a token.

    Args:
        model: a supernet or a stand-alone network; its mode and gradients stay as they are.
        arch: the sub-network, or None for the largest.
        windows: [count, seq + 1] int64.
        batch: windows at once.

    Returns:
        [count] float64.
    """
    arch = arch or model.envelope
    device = model.embedding.device
    head = model.head_weight(arch)
    found = []
    for first in range(0, len(windows), batch):
        tokens = torch.from_numpy(windows[first : first + batch]).to(device)
        hidden = model.hidden_states(tokens[:, :-1], arch)
        losses = token_losses(hidden.flatten(0, 1), head, tokens[:, 1:].flatten())
        found.append(losses.view(len(tokens), -1).double().mean(1).cpu().numpy())
    return np.concatenate(found)


def quality(val_loss: float, bytes_per_token: float) -> dict[str, float]:
    """The usual forms of a loss: nats a token, perplexity, bits a byte of UTF-8 text."""
    return {
        "val_loss": val_loss,
        "perplexity": math.exp(min(val_loss, 700.0)),
        "bits_per_byte": val_loss / bytes_per_token / math.log(2),
    }
