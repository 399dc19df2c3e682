"""`config.json` of a checkpoint with `block_configs`, as vLLM's reader wants it: blocks are objects with attributes.

Shipped inside such checkpoints (`auto_map`, `trust_remote_code=True`): transformers has no model type "nemotron-nas".
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from transformers import MistralConfig

FFN_STEP = 256


class DeciLMConfig(MistralConfig):  # type: ignore[misc]
    """Llama's keys and the sizes of every layer. Mistral's class, since in Llama's the heads divide the hidden size.

    Args:
        block_configs: for every layer {"attention": {"no_op", "n_heads_in_group", ..}, "ffn": {"ffn_mult", ..}}.
        attention_bias: biases on q, k, v and o.
        mlp_bias: biases in the FFN.
        kwargs: what MistralConfig has.
    """

    model_type = "nemotron-nas"

    def __init__(
        self,
        block_configs: list[dict[str, Any]] | None = None,
        attention_bias: bool = False,
        mlp_bias: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**({"sliding_window": None} | kwargs))
        self.attention_bias, self.mlp_bias = attention_bias, mlp_bias
        self.block_configs = [
            SimpleNamespace(**{part: SimpleNamespace(**sizes) for part, sizes in block.items()})
            for block in block_configs or ()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in config.json."""
        blocks = [{part: dict(vars(sizes)) for part, sizes in vars(block).items()} for block in self.block_configs]
        found: dict[str, Any] = super().to_dict()
        return found | {"block_configs": blocks}


def ffn_size(ffn_mult: float, hidden_size: int) -> int:
    """The width that readers make of `ffn_mult`: 2 / 3 of that multiple of the hidden size, up to a multiple of 256."""
    return -(-int(2 * ffn_mult * hidden_size / 3) // FFN_STEP) * FFN_STEP
