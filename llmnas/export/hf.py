"""Hugging Face checkpoints, verified before they appear: a stock class where one holds the network, else our own."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file
from torch import Tensor

from llmnas.cost import count_params
from llmnas.export.card import Card, Stored, render
from llmnas.export.folder import check_folder, staged, verify_fresh
from llmnas.export.layout import Layout, lay_out
from llmnas.export.origin import hand_on, write_generation
from llmnas.export.own import is_buffer
from llmnas.export.ship import write_code
from llmnas.export.tokenizer import EOS_ID, check_tokenizer_file, write_tokenizer
from llmnas.files import ABOUT_FILE, Seal, Written, read_json, write_bytes, write_json, write_text
from llmnas.files.export_hashes import Measured, note
from llmnas.nn.lowbit import PACKED, is_packed
from llmnas.supernet import Transformer


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        folder: where it lies.
        class_name: the transformers class that loads it.
        tier: 1, exactly the architecture's sizes; 2, padded; 3, our own modeling file.
        parameters: in the file.
        own_parameters: of the architecture itself.
        difference: largest difference of a logit in a fresh process, relative to the largest logit.
    """

    folder: Path
    class_name: str
    tier: int
    parameters: int
    own_parameters: int
    difference: float


def export_hf(
    model: Transformer,
    folder: Path,
    *,
    tokenizer_path: Path | None,
    card: Card,
    eos_id: int = EOS_ID,
    force: bool = False,
    layout: Callable[[Transformer, int | None], Layout] = lay_out,
    dtype: torch.dtype = torch.float32,
    split_special: bool = False,
    made_of: Mapping[str, str] | None = None,
    measured: Measured | None = None,
) -> ExportReport:
    """Write a stand-alone model as a transformers checkpoint: floats as `dtype`, low-bit weights packed.

    It is written beside `folder`, loaded in a fresh offline process whose logits must equal the
    model's (within `verify.TOLERANCE` of their scale), and only then renamed to `folder`.

    Args:
        model: from `extract`, or trained by itself.
        folder: what to make.
        tokenizer_path: a `tokenizer.json`, or None; what came with it from a pretrained model and lies beside it
            (`tokenizer_config.json`, ...) is kept.
        eos_id: its entry that ends a text. A pretrained model's may have fewer entries than the model has rows.
        card: what the model card says.
        force: replace an earlier export.
        layout: how the model, given the end of text, lies in the folder.
        dtype: weights are rounded to it, and stored as it where the layout changes no number (padding may).
        split_special: the tokenizer reads special tokens in a text as plain characters, as in training.
        made_of: SHA-256 of the files it comes from.
        measured: how the loss of the card was measured, so that `llmnas verify` can measure it again.

    Raises:
        UserError: `folder` is there already, or the tokenizer does not fit.
        RunError: the files could not be written, or do not give the model's logits.
    """
    check_folder(folder, force)
    if tokenizer_path is not None:
        check_tokenizer_file(tokenizer_path, model.base.vocab_size, eos_id)
    model = rounded(model, dtype)
    with staged(folder, force) as checkpoint:
        expected = checkpoint.with_name("expected.safetensors")
        written: list[Written] = []
        stored = write_checkpoint(
            model, checkpoint, tokenizer_path, card, eos_id, layout, dtype, split_special=split_special,
            seal=written.append,
        )  # fmt: skip
        write_expected(model, expected)
        difference = verify_fresh(checkpoint, expected, folder)
        note(checkpoint, written, made_of, measured)
    return ExportReport(folder, stored.class_name, stored.tier, stored.parameters, stored.own_parameters, difference)


def rounded(model: Transformer, dtype: torch.dtype) -> Transformer:
    """A float32 copy on the CPU whose dense weights `dtype` can hold; low-bit ones are packed, so they stay."""
    copied = copy.deepcopy(model).float().cpu()
    if all(spec.weights == "dense" for _, spec in copied.envelope.kept):
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.copy_(parameter.to(dtype))
    return copied


def stored_as(weights: dict[str, Tensor], dtype: torch.dtype) -> tuple[dict[str, Tensor], torch.dtype]:
    """Weights as `dtype` where none of them changes by that, else as they are; and what they are stored as."""
    floats = [weight for weight in weights.values() if weight.dtype == torch.float32]
    if dtype == torch.float32 or not all(torch.equal(weight.to(dtype).float(), weight) for weight in floats):
        return weights, torch.float32
    return {n: w.to(dtype) if w.dtype == torch.float32 else w for n, w in weights.items()}, dtype


def write_expected(model: Transformer, path: Path) -> None:
    """Fixed random tokens and the logits that `model` gives them, for `llmnas.export.verify`."""
    base = model.base
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(base.vocab_size, (2, min(base.max_seq, 64)), generator=generator)
    with torch.no_grad():
        logits = model(tokens)
    save_file({"tokens": tokens, "logits": logits.contiguous()}, path)


def with_older_names(stored: dict[str, Any], config: Any) -> dict[str, Any]:
    """config.json with what transformers 4 and engines built on it call the same things, beside the names of today."""
    older = {name: stored[today] for name, today in config.attribute_map.items() if today in stored}
    rope = stored.get("rope_parameters")
    if rope:
        older["rope_theta"] = rope["rope_theta"]
        if rope["rope_type"] != "default":
            older["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    return stored | older


def write_checkpoint(
    model: Transformer,
    folder: Path,
    tokenizer_path: Path | None,
    card: Card,
    eos_id: int = EOS_ID,
    lay: Callable[[Transformer, int | None], Layout] = lay_out,
    dtype: torch.dtype = torch.float32,
    split_special: bool = False,
    seal: Seal = lambda _: None,
) -> Stored:
    """Write all files of an export into the empty `folder`, unverified; `model` is float32 on the CPU.

    `seal` is told of the weights, as in `llmnas.files.hashed_open`.
    """
    base, arch = replace(model.base, rope_dim=model.rope_dim), model.envelope
    end = None if tokenizer_path is None else eos_id
    config_path = folder / "config.json"
    layout = lay(model, end)
    shape = layout.shape
    weights, dtype = stored_as(layout.weights, dtype)
    layout.config.save_pretrained(folder)
    write_code(folder, layout.code)
    config = read_json(config_path) | {"dtype": str(dtype).removeprefix("torch.")}
    write_json(config_path, with_older_names(config, layout.config))
    write_generation(tokenizer_path, end, folder)
    weights_path = folder / "model.safetensors"
    write_bytes(weights_path, save(weights, metadata={"format": "pt"}), seal)
    shutil.copymode(config_path, weights_path)
    write_tokenizer(tokenizer_path, folder, base.max_seq, eos_id, split_special=split_special)
    origin = hand_on(tokenizer_path, folder)
    stored = Stored(
        class_name=layout.class_name,
        shape=shape,
        parameters=sum(
            weight.numel() * (PACKED[weight.dtype][1] if is_packed(weight) else 1)
            for name, weight in weights.items()
            if not is_buffer(name)
        ),
        packed=sum(weight.numel() * PACKED[weight.dtype][1] for weight in weights.values() if is_packed(weight)),
        size=sum(weight.nbytes for weight in weights.values()),
        own_parameters=count_params(arch, base).total,
        tokenizer=tokenizer_path is not None,
        split_special=split_special,
        reason=layout.reason and layout.reason.removeprefix("export: "),
        blocks=layout.blocks,
    )
    write_json(
        folder / ABOUT_FILE,
        {
            "architecture": arch.to_dict(),
            "base": asdict(base),
            "export": {"class": stored.class_name, "tier": stored.tier}
            | ({"sizes": asdict(shape.spec)} if shape else {}),
        },
    )
    write_text(folder / "README.md", render(replace(card, **origin), arch, base, stored))
    return stored
