"""What a network remembers of the tokens it has read: an argument of forward, never stored in a module.

Shapes: B batch, T sequence, K kv heads, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class LayerCache:
    """Keys (rotated) and values of one layer, written in place.

    Attributes:
        keys, values: [B, capacity, K, D], of which the leading `length` tokens are filled.
    """

    keys: Tensor
    values: Tensor
    length: int = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens, each [B, T, K, D]; returns all of them, [B, length, K, D] (views).

        Raises:
            ValueError: more tokens than the cache holds.
        """
        end = self.length + k.shape[1]
        if end > self.keys.shape[1]:
            raise ValueError(f"the cache holds {self.keys.shape[1]} tokens, {end} were read")
        self.keys[:, self.length : end] = k
        self.values[:, self.length : end] = v
        self.length = end
        return self.keys[:, :end], self.values[:, :end]


@dataclass
class Cache:
    """The caches of a network's layers, None where the architecture skips one, and how many tokens they hold."""

    layers: list[LayerCache | None]
    length: int = field(default=0)

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        if not 0 <= length <= self.length:
            raise ValueError(f"the cache holds {self.length} tokens and cannot be cut to {length}")
        self.length = length
        for layer in self.layers:
            if layer is not None:
                layer.length = length


def key_value_cache(like: Tensor, batch: int, capacity: int, kv_heads: int, head_dim: int) -> LayerCache:
    """An empty cache of one attention layer with the dtype and device of `like`."""
    keys = torch.empty(batch, capacity, kv_heads, head_dim, dtype=like.dtype, device=like.device)
    return LayerCache(keys, torch.empty_like(keys))
