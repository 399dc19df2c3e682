"""Checkpoints with `block_configs` in transformers: Llama with the sizes of each layer.

Shipped inside such checkpoints, so that transformers loads what engines with a reader of their own load.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel

from llmnas.export.configuration_decilm import DeciLMConfig, ffn_size


class DeciLMBlock(LlamaDecoderLayer):  # type: ignore[misc]
    """One layer of Llama with sizes of its own, with or without attention."""

    def __init__(self, config: DeciLMConfig, layer_idx: int) -> None:
        sizes, own = config.block_configs[layer_idx], copy.copy(config)
        own.intermediate_size = ffn_size(sizes.ffn.ffn_mult, config.hidden_size)
        if not sizes.attention.no_op:
            own.num_key_value_heads = config.num_attention_heads // sizes.attention.n_heads_in_group
        super().__init__(own, layer_idx)
        if sizes.attention.no_op:
            del self.self_attn, self.input_layernorm
        else:
            self.self_attn.config = config  # the one in which transformers changes the kind of attention

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """[batch, seq, hidden] -> the same, as Llama's layer does."""
        if hasattr(self, "self_attn"):
            attended: Tensor = super().forward(hidden_states, **kwargs)
            return attended
        fed: Tensor = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + fed


class DeciLMModel(LlamaModel):  # type: ignore[misc]
    """Llama's trunk on `DeciLMBlock`s."""

    config_class = DeciLMConfig

    def __init__(self, config: DeciLMConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(DeciLMBlock(config, i) for i in range(config.num_hidden_layers))
        self.post_init()


class DeciLMForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    """Llama's language model on `DeciLMModel`."""

    config_class = DeciLMConfig

    def __init__(self, config: DeciLMConfig) -> None:
        super().__init__(config)
        self.model = DeciLMModel(config)
        self.post_init()
