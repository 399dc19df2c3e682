"""Where the low-bit weights of a network live."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from llmnas.nn.attention import OUT_DIMS as OF_ATTENTION
from llmnas.nn.attention import Attention
from llmnas.nn.ffn import OUT_DIMS as OF_FFN
from llmnas.nn.ffn import FeedForward
from llmnas.nn.mlgru import MLGRU
from llmnas.nn.mlgru import OUT_DIMS as OF_MLGRU
from llmnas.nn.moe import OUT_DIMS as OF_EXPERTS
from llmnas.nn.moe import Experts
from llmnas.space.architecture import Weights
from llmnas.supernet.model import Transformer

# leading axes that are outputs, and how many of them tell matrices apart
LOW_BIT_LAYOUTS: dict[type[nn.Module], tuple[dict[str, int], int]] = {
    Attention: (OF_ATTENTION, 0),
    MLGRU: (OF_MLGRU, 0),
    FeedForward: (OF_FFN, 0),
    Experts: (OF_EXPERTS, 1),
}


def low_bit_weights(model: Transformer) -> Iterator[tuple[str, str, Weights, int, int]]:
    """(path of the module, name, kind, axes that are outputs, those of them that tell matrices apart) of every weight
    of a stand-alone network's low-bit layers."""
    for i, (_, spec) in enumerate(model.envelope.kept):
        if spec.weights == "dense":
            continue
        for path, module in model.layers[i].named_modules(prefix=f"layers.{i}"):
            out_dims, matrices = LOW_BIT_LAYOUTS.get(type(module), ({}, 0))
            for name, out in out_dims.items():
                yield path, name, spec.weights, out, matrices
