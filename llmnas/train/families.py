"""The families of pretrained models that the layers here can compute, one row each.

A row says how a family differs from a Llama: which properties of `BaseModel` it has, and how its weights become those
of a Llama (renamed, split, or with a factor folded in). A new family is a new row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Weights = dict[str, Tensor]


def _nothing(weights: Weights, config: Any) -> None:
    """The weights are a Llama's already."""


@dataclass(frozen=True)
class Family:
    """How a kind of model differs from a Llama.

    Attributes:
        qk_norm: RMSNorm on queries and keys.
        biased: the class has biases on q, k and v whatever the config says.
        layer: changes the weights of one layer in place; their names are those behind `model.layers.0.`.
        whole: changes the weights outside of layers in place.
    """

    qk_norm: bool = False
    biased: bool = False
    layer: Callable[[Weights, Any], None] = _nothing
    whole: Callable[[Weights, Any], None] = _nothing


FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(biased=True),
    "qwen3": Family(qk_norm=True),
    "seed_oss": Family(),
    "smollm3": Family(),
}
REFUSED: dict[str, str] = {}
"""Why well-known others are not read."""
