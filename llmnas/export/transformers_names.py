"""What transformers 4.57 and 5 call by different names; travels inside exported checkpoints."""

from __future__ import annotations

from dataclasses import fields

import transformers
from transformers.modeling_outputs import CausalLMOutputWithPast

PreTrainedConfig = (
    transformers.PreTrainedConfig
    if hasattr(transformers, "PreTrainedConfig")
    else (
        transformers.PretrainedConfig  # up to 4.57
    )
)
CACHE = "cache" if any(field.name == "cache" for field in fields(CausalLMOutputWithPast)) else "past_key_values"
"""The argument and output that holds what was read: `cache` since 5.24."""
