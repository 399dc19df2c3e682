"""Text from an exported checkpoint, by transformers' own generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from llmnas.errors import UserError
from llmnas.export.loading import load_tokenizer, open_model
from llmnas.export.modeling_llmnas import LlmnasForCausalLM
from llmnas.files import GENERATION_FILE
from llmnas.supernet import pack, packable


def load_model(folder: Path) -> Any:
    """The transformers model of an exported folder, in float32, to be read only; code in the folder is never run.

    Low-bit weights of our own class that lie there as floats (`unpacked`, or written before they were packed) are
    packed here: they would be quantised again for every token.

    Raises:
        UserError: not an export, one that asks for code, or weights that are damaged or do not fit.
    """
    model = open_model(folder)
    if isinstance(model, LlmnasForCausalLM) and not model.subnetworks and packable(model.model):
        model.model = pack(model.model)
    return model


def read_prompt(folder: Path, prompt: str, longest: int) -> tuple[PreTrainedTokenizerFast, Tensor]:
    """The tokenizer of an exported folder and the prompt's tokens, [1, length] int64.

    Raises:
        UserError: a prompt without a token, or one that leaves no room within `longest` tokens.
    """
    tokenizer = load_tokenizer(folder)
    ids: Tensor = tokenizer(prompt, return_tensors="pt")["input_ids"].long()
    length = ids.shape[1]
    if not length:
        raise UserError("--prompt: is empty; give at least one character")
    if length >= longest:
        raise UserError(f"--prompt: has {length} tokens, the model takes at most {longest - 1} and one to add")
    return tokenizer, ids


def generate(folder: Path, prompt: str, *, tokens: int, temperature: float, seed: int, model: Any = None) -> str:
    """What the model adds to `prompt`: at most `tokens` tokens, up to its end of text or its longest sequence.

    Temperature 0 takes the likeliest token, otherwise one is drawn from softmax(logits / temperature).
    The same seed gives the same text, and the global generators are left as they were. `model` is
    that of the folder where it is loaded already.

    Raises:
        UserError: a prompt without a token, or one that leaves no room within the longest sequence.
    """
    model = load_model(folder) if model is None else model
    longest = int(model.config.max_position_embeddings)
    tokenizer, ids = read_prompt(folder, prompt, longest)
    length = ids.shape[1]
    drawing: dict[str, Any] = {"do_sample": False}
    if temperature:
        drawing = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    # BitLinear compiles itself, which takes a C++ compiler and longer than the text
    with torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager"):
        torch.manual_seed(seed)
        try:
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=min(tokens, longest - length), **drawing
            )
        except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            why = " ".join(str(error).split())
            raise UserError(f"{folder}: does not generate ({why}); is its {GENERATION_FILE} damaged?") from None
    return str(tokenizer.decode(out[0, length:], skip_special_tokens=True))
