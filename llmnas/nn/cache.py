"""What a network remembers of the tokens it has read: an argument of forward, never stored in a module.

Shapes: B batch, T sequence, K kv heads, D head_dim, W width of a recurrent state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmnas.space.architecture import LayerSpec


@dataclass
class KeyValues:
    """Keys (rotated) and values of one attention layer, written in place.

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

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens in all; grows to twice the size at least, so that tokens are seldom copied."""
        capacity = self.keys.shape[1]
        if length <= capacity:
            return
        for name in ("keys", "values"):
            old: Tensor = getattr(self, name)
            new = old.new_empty(old.shape[0], max(length, 2 * capacity), *old.shape[2:])
            new[:, : self.length] = old[:, : self.length]
            setattr(self, name, new)

    def select(self, rows: Tensor) -> None:
        """Keep these sequences, in this order; [new batch] int64."""
        self.keys, self.values = self.keys[rows], self.values[rows]


@dataclass
class State:
    """The state of one recurrent layer, [B, W], None before the first token; replaced, never written in place."""

    state: Tensor | None = None

    def select(self, rows: Tensor) -> None:
        """Keep these sequences, in this order; [new batch] int64."""
        self.state = None if self.state is None else self.state[rows]


LayerCache = KeyValues | State


@dataclass(frozen=True)
class Mark:
    """A place in the text that a cache can go back to."""

    length: int
    states: tuple[Tensor | None, ...]


@dataclass
class Cache:
    """The caches of a network's layers, None where a layer remembers nothing, and how many tokens were read."""

    layers: list[LayerCache | None]
    length: int = 0

    def mark(self) -> Mark:
        """The place after the tokens read so far."""
        return Mark(self.length, tuple(layer.state if isinstance(layer, State) else None for layer in self.layers))

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens in all."""
        for layer in self.layers:
            if isinstance(layer, KeyValues):
                layer.reserve(length)

    def select(self, rows: Tensor) -> None:
        """Keep these sequences, in this order, perhaps several times; [new batch] int64."""
        for layer in self.layers:
            if layer is not None:
                layer.select(rows)

    def back_to(self, mark: Mark) -> None:
        """Forget what was read after `mark`, which must be of this cache.

        Raises:
            ValueError: fewer tokens were read than there.
        """
        if mark.length > self.length:
            raise ValueError(f"the cache holds {self.length} tokens, fewer than the {mark.length} of the mark")
        self.length = mark.length
        for layer, state in zip(self.layers, mark.states, strict=True):
            if isinstance(layer, KeyValues):
                layer.length = mark.length
            elif isinstance(layer, State):
                layer.state = state


def layer_cache(spec: LayerSpec | None, like: Tensor, batch: int, capacity: int) -> LayerCache | None:
    """An empty cache for one layer, with the dtype and device of `like`."""
    if spec is None or spec.mixer == "none":
        return None
    if spec.mixer == "mlgru":
        return State()
    keys = torch.empty(batch, capacity, spec.kv_heads, spec.head_dim, dtype=like.dtype, device=like.device)
    return KeyValues(keys, torch.empty_like(keys))
