"""Write the found network as a Hugging Face checkpoint, or as a GGUF file."""

from __future__ import annotations

from pathlib import Path

import torch

from llmnas.errors import UserError
from llmnas.export import Card, ExportReport, export_hf
from llmnas.export.block_configs import lay_out_blocks
from llmnas.export.generate import generate
from llmnas.export.gguf import export_gguf
from llmnas.export.layout import lay_out
from llmnas.files import ABOUT_FILE, inside
from llmnas.files.export_hashes import Measured
from llmnas.pipeline.context import Context
from llmnas.pipeline.results import Trained, export_facts, retrained
from llmnas.pipeline.stand_alone import load_alone, trained_as, weights_of
from llmnas.rng import torch_seed
from llmnas.runs import RunFolder
from llmnas.space import Architecture
from llmnas.supernet import Transformer

BLOCKS = "block_configs"
_HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""What a pretrained model may be stored as, and then what is made of it too."""


def export(context: Context, *, force: bool = False, blocks: bool = False, split_special: bool = False) -> ExportReport:
    """Export the found architecture with the weights of its best retrained seed, verified on write.

    `blocks` writes the layout of `llmnas.export.block_configs` beside the usual folder; `split_special`: its tokenizer
    reads special tokens in a text as plain characters.
    """
    config, run = context.config, context.run
    model, arch, best = _winner(context)
    card = Card(
        name=f"{config.name}-{arch.id}",
        metrics={name: best[name] for name in ("val_loss", "perplexity", "bits_per_byte")},
        data=f"{config.data.source}, {config.data.validation:.0%} of the documents held out",
        seed=best["seed"],
        trained_tokens=best["tokens"] + _tokens_before(run, best),
        notes=_notes(run, best),
    )
    report = export_hf(
        model, run.export(f"{arch.id}-{BLOCKS}" if blocks else arch.id), tokenizer_path=run.tokenizer, card=card,
        force=force, eos_id=context.tokens("train").info.eos_id, layout=lay_out_blocks if blocks else lay_out,
        dtype=_HALVES.get(str(run.recorded("warm_start").get("dtype")), torch.float32),
        split_special=split_special,
        made_of=_made_of(context, weights_of(run.stand_alone("retrain", f"found-{arch.id}", best["seed"]))),
        measured=_measured(context, best["val_loss"]),
    )  # fmt: skip
    run.record(
        BLOCKS if blocks else "export",
        folder=str(report.folder.relative_to(run.path)),
        model_class=report.class_name,
        of=best["identity"],
    )
    return report


def _tokens_before(run: RunFolder, best: Trained) -> int:
    """Tokens that inherited weights were trained on in this run before: the supernet's, the corrected model's."""
    stages = {"supernet": ("correction", "train"), "pretrained": ("correction",)}.get(best.get("start", ""), ())
    return sum(int(run.recorded(stage).get("tokens", 0)) for stage in stages)


def _notes(run: RunFolder, best: Trained) -> tuple[str, ...]:
    """What the number of tokens consists of, where it is a sum."""
    before = _tokens_before(run, best)
    if not before:
        return ()
    return (f"Of these tokens {before:,} were seen by the network that its weights come from, the rest by itself.",)


def export_as_gguf(context: Context, *, force: bool = False, ternary: str | None = None) -> tuple[Path, str]:
    """The same network as one GGUF file beside its folder; returns where it is and llama.cpp's architecture."""
    run = context.run
    model, arch, best = _winner(context)
    path = run.export(arch.id).with_suffix(".gguf")
    held = export_gguf(
        model, path, tokenizer_path=run.tokenizer, name=f"{context.config.name}-{arch.id}", force=force,
        ternary=ternary, eos_id=context.tokens("train").info.eos_id,
    )  # fmt: skip
    run.record("gguf", file=str(path.relative_to(run.path)), arch=held.arch, of=best["identity"])
    return path, held.arch


def _made_of(context: Context, weights: Path) -> dict[str, str]:
    """SHA-256 of the weights and the tokenizer that an export comes from, as the run noted them."""
    run = context.run
    noted = run.ledger.files() or {}
    names = [path.relative_to(run.path).as_posix() for path in (weights, run.tokenizer)]
    return {name: noted[name].sha256 for name in names if name in noted}


def _measured(context: Context, val_loss: float) -> Measured:
    """How the loss of a network trained alone was measured."""
    windows, _ = context.loss_windows()
    shards = context.tokens("validation").info.shards
    return Measured(
        val_loss=val_loss, seq_len=context.config.train.seq_len, windows=len(windows),
        document_end=context.document_end, tokens=tuple(shard.sha256 for shard in shards),
    )  # fmt: skip


def _winner(context: Context) -> tuple[Transformer, Architecture, Trained]:
    """The found network with the weights of its best retrained seed, and what `retrain` says of that seed.

    Raises:
        UserError: nothing is retrained; or it was begun again in another way, and has not ended.
    """
    run = context.run
    best = min(retrained(run)["runs"]["found"], key=lambda r: r["val_loss"])
    arch = Architecture.from_dict(best["architecture"])
    folder = run.stand_alone("retrain", f"found-{arch.id}", best["seed"])
    if trained_as(folder) != best["identity"]:
        raise UserError(
            f"{folder}: not the weights of {run.result('retrain')}: retraining began anew and has not ended; "
            "run `llmnas retrain --resume`"
        )
    return load_alone(context, arch, folder), arch, best


def exported(context: Context) -> bool:
    """Whether the best run of what is retrained now has been exported, and the export is still there."""
    run = context.run
    if not run.result("retrain").exists():
        return False
    best, done = min(retrained(run)["runs"]["found"], key=lambda r: r["val_loss"]), export_facts(run)
    if done is None or done.get("of") != best["identity"]:
        return False
    return (inside(run.path, done["folder"]) / ABOUT_FILE).is_file()


def go_on(checkpoint: Path, prompt: str, *, tokens: int, temperature: float, seed: int) -> str:
    """The prompt and what an exported model adds to it."""
    return prompt + generate(
        checkpoint, prompt, tokens=tokens, temperature=temperature, seed=torch_seed(seed, "generate")
    )
