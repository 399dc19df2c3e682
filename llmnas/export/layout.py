"""How a network lies in a Hugging Face checkpoint: a stock class where one computes it, our own otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from llmnas.errors import UserError
from llmnas.export.bitnet import BITNET, bitnet_config, bitnet_shape, bitnet_weights
from llmnas.export.config import CLASS_NAMES, has_output_bias, stock_config
from llmnas.export.own import CLASS_NAME, own_config, own_weights
from llmnas.export.shape import StockShape, stock_class, stock_shape, why_not_stock
from llmnas.export.ship import shipped_files
from llmnas.export.weights import stock_weights
from llmnas.supernet import Transformer, pack, packable


class Layout(NamedTuple):
    """How a model lies in a checkpoint: its class, what config.json says, the tensors.

    Without a `shape` the class is not stock, and `code` are the files that travel with the weights: our own class,
    and `reason` says why; or one with sizes by layer, which are the `blocks`.
    """

    class_name: str
    config: Any
    weights: dict[str, Tensor]
    shape: StockShape | None
    reason: str | None = None
    code: Mapping[str, str] = MappingProxyType({})
    blocks: tuple[StockShape, ...] = ()


def lay_out(model: Transformer, eos_id: int | None) -> Layout:
    """A stock class where one computes the model, our own otherwise, with low-bit weights packed where they can be."""
    base, arch = replace(model.base, rope_dim=model.rope_dim), model.envelope
    reason = stock_reason(model)
    if reason is None:
        kind, shape = stock_class(base, arch), stock_shape(base, arch)
        weights = stock_weights(model, shape, o_bias=has_output_bias(kind, base))
        return Layout(CLASS_NAMES[kind], stock_config(base, arch, kind, shape, eos_id), weights, shape)
    if any(spec.weights == "ternary" for _, spec in arch.kept):
        try:
            shape = bitnet_shape(base, arch)
        except UserError as error:
            reason = str(error)
        else:
            return Layout(BITNET, bitnet_config(base, arch, shape, eos_id), bitnet_weights(model, shape), shape)
    stored = pack(model) if packable(model) else model
    return Layout(CLASS_NAME, own_config(stored, eos_id), own_weights(stored), None, reason, shipped_files())


def stock_reason(model: Transformer) -> str | None:
    """Why no stock class computes what `model` does, weights included; None where one does."""
    for i, (_, spec) in enumerate(model.envelope.kept):
        balance = model.state_dict().get(f"layers.{i}.ffn.balance")
        if spec.top_k < spec.experts and balance is not None and bool((balance != balance[0]).any()):
            return f"export: layer {i} chooses experts with a trained balance bias, which no stock class has"
    return why_not_stock(replace(model.base, rope_dim=model.rope_dim), model.envelope)
