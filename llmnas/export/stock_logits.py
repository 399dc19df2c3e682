"""What transformers' own class computes from a model's folder: the oracle of everything that is read here."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from llmnas.errors import UserError


@torch.no_grad()
def stock_logits(folder: Path, tokens: Tensor) -> Tensor:
    """[batch, seq] int64 -> [batch, seq, vocab] of the stock class of the folder's `model_type`, in float32.

    No code of the folder runs, and no pickle is opened.

    Raises:
        UserError: transformers does not load it.
    """
    logging.disable_progress_bar()  # a verb's output is its own
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, local_files_only=True,
            attn_implementation="sdpa",
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001 (loading raises errors of every kind)
        raise UserError(f"{folder}: transformers does not load it: {' '.join(str(error).split())}") from None
    found: Tensor = model.eval()(tokens, use_cache=False).logits
    return found
