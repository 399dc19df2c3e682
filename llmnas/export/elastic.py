"""One checkpoint, every budget: a supernet's weights once, and the table of its sub-networks."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save, save_file
from torch import Tensor

from llmnas.errors import UserError
from llmnas.export.card import Card, origin_lines, table
from llmnas.export.folder import check_folder, staged, verify_fresh
from llmnas.export.modeling_llmnas import LlmnasForCausalLM
from llmnas.export.origin import hand_on, write_generation
from llmnas.export.own import CLASS_NAME, own_config, own_weights
from llmnas.export.ship import shipped_files, write_code
from llmnas.export.subnetworks import LatencyTable, Subnetwork
from llmnas.export.tokenizer import EOS_ID, check_tokenizer_file, write_tokenizer
from llmnas.export.verify import OTHER
from llmnas.files import ABOUT_FILE, Written, write_bytes, write_json, write_text
from llmnas.files.export_hashes import note
from llmnas.supernet import Transformer

_VERIFIED = 8  # sub-networks whose logits are compared, spread over the table


@dataclass(frozen=True)
class ElasticReport:
    """What was written.

    Attributes:
        folder: where it lies.
        subnetworks: the table, best loss first.
        latency: what was measured on this device.
        difference: largest difference of a logit in a fresh process, relative to the largest logit.
    """

    folder: Path
    subnetworks: tuple[Subnetwork, ...]
    latency: LatencyTable
    difference: float


def export_elastic(
    supernet: Transformer,
    subnetworks: Sequence[Subnetwork],
    folder: Path,
    *,
    tokenizer_path: Path | None,
    card: Card,
    context: int,
    seconds: float = 2.0,
    eos_id: int = EOS_ID,
    force: bool = False,
    split_special: bool = False,
    made_of: Mapping[str, str] | None = None,
) -> ElasticReport:
    """Write a supernet and its Pareto sub-networks as one transformers checkpoint, verified before it appears.

    Args:
        supernet: float32 on the CPU.
        subnetworks: what a budget may pick, in any order.
        folder: what to make.
        tokenizer_path: a `tokenizer.json`, or None.
        card: what the model card says.
        context: tokens of the text at which latencies are measured.
        seconds: about how long to measure them.
        eos_id: the tokenizer's entry that ends a text.
        force: replace an earlier export.
        split_special: the tokenizer reads special tokens in a text as plain characters, as in training.
        made_of: SHA-256 of the files it comes from.

    Raises:
        UserError: no sub-network, `folder` is there already, or the tokenizer does not fit.
        RunError: the files could not be written, or do not give the sub-networks' logits.
    """
    check_folder(folder, force)
    if not subnetworks:
        raise UserError(f"{folder}: no sub-network to write; search first")
    if tokenizer_path is not None:
        check_tokenizer_file(tokenizer_path, supernet.base.vocab_size, eos_id)
    ordered = tuple(sorted(subnetworks, key=lambda one: (one.metrics["val_loss"], one.metrics["params"])))
    end = None if tokenizer_path is None else eos_id
    config = own_config(supernet, end, subnetworks=[one.to_dict() for one in ordered])
    latency = LlmnasForCausalLM(config, supernet).measure_latency(context, seconds)
    config.latency_tables = [latency.to_dict()]
    with staged(folder, force) as checkpoint:
        config.save_pretrained(checkpoint)
        write_generation(tokenizer_path, end, checkpoint)
        written: list[Written] = []
        data = save(own_weights(supernet), metadata={"format": "pt"})
        write_bytes(checkpoint / "model.safetensors", data, written.append)
        shutil.copymode(checkpoint / "config.json", checkpoint / "model.safetensors")
        write_code(checkpoint, shipped_files())
        write_tokenizer(tokenizer_path, checkpoint, supernet.base.max_seq, eos_id, split_special=split_special)
        write_json(checkpoint / ABOUT_FILE, _about(supernet, ordered))
        card = replace(card, **hand_on(tokenizer_path, checkpoint))
        write_text(checkpoint / "README.md", _card(card, supernet, ordered, latency))
        expected = checkpoint.with_name("expected.safetensors")
        save_file(_expected(supernet, ordered), expected)
        difference = verify_fresh(checkpoint, expected, folder)
        note(checkpoint, written, made_of)
    return ElasticReport(folder, ordered, latency, difference)


def _about(supernet: Transformer, table_: Sequence[Subnetwork]) -> dict[str, object]:
    return {
        "architecture": supernet.envelope.to_dict(),
        "base": asdict(replace(supernet.base, rope_dim=supernet.rope_dim)),
        "export": {"class": CLASS_NAME, "tier": 3, "elastic": len(table_)},
    }


@torch.no_grad()
def _expected(supernet: Transformer, table_: Sequence[Subnetwork]) -> dict[str, Tensor]:
    """Fixed random tokens and the logits of sub-networks from the smallest to the best."""
    base = supernet.base
    seed = torch.Generator().manual_seed(0)
    tokens = torch.randint(base.vocab_size, (2, min(base.max_seq, 64)), generator=seed)
    places = {round(i * (len(table_) - 1) / max(_VERIFIED - 1, 1)) for i in range(_VERIFIED)}
    logits = {f"{OTHER}{i}": supernet(tokens, table_[i].arch) for i in sorted(places)}
    return {"tokens": tokens, "logits": supernet(tokens, table_[0].arch), **logits}


def _card(card: Card, supernet: Transformer, ordered: Sequence[Subnetwork], latency: LatencyTable) -> str:
    """The model card as Markdown with the front matter that the Hugging Face Hub reads."""
    device = ", ".join(f"{name} {value}" for name, value in latency.fingerprint.items())
    rows = [
        (one.id, f"{one.metrics['val_loss']:.4f}", f"{int(one.metrics['params']):,}", one.arch.hidden_size,
         one.arch.depth, f"{int(one.metrics['memory_bytes']):,}", f"{latency.ms[one.id]:.3g}")
        for one in ordered
    ]  # fmt: skip
    stored = sum(weight.numel() for weight in supernet.parameters())
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n"
        f"tags:\n- llmnas\n- neural-architecture-search\n- elastic\n{origin_lines(card)}---\n\n"
        f"# {card.name}\n\n{len(ordered)} language models in one set of weights ({stored:,} parameters): a budget "
        "picks one when the model runs, and switching copies nothing.\n\n"
        "```python\nfrom transformers import AutoModelForCausalLM\n\n"
        'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder", trust_remote_code=True)\n'
        "model.measure_latency()              # on another device than the table's\n"
        "model.set_budget(latency_ms=15)      # or params=..., memory_bytes=..., or several\n"
        'model.generate(ids, budget={"params": 1_000_000})  # for one call\n\n'
        "model.train_elastic()                # before any trainer: every step trains another sub-network\n"
        "model.measure_losses(tokens)         # afterwards, so that the table is of the new weights\n```\n\n"
        "## Sub-networks\n\n"
        + table(("id", "val loss", "parameters", "hidden", "layers", "memory (bytes)", "ms a token"), rows)
        + f"\n\nMilliseconds a generated token at a text of {latency.context} tokens, measured on: {device}. Memory is "
        "that of the sub-network alone, weights and cache; this file holds all weights. Losses are those of the "
        "shared weights: a network trained by itself is usually better.\n\n"
        f"## Training\n\nData: {card.data}. Seed: {card.seed}.\n" + "".join(f"\n{note}\n" for note in card.notes)
    )
