"""Whether a run folder or an export is what was written, and its model as good as its card says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from llmnas.data import Sequences, TokenFile
from llmnas.errors import UserError
from llmnas.export.generate import load_model
from llmnas.export.modeling_llmnas import LlmnasForCausalLM
from llmnas.files import ABOUT_FILE, inside, read_json
from llmnas.files.export_hashes import Measured, damages, read_hashes
from llmnas.pipeline.run_stores import training_files
from llmnas.runs import RunFolder
from llmnas.supernet import document_numbers
from llmnas.train.checkpoint import verify_checkpoint
from llmnas.train.checkpoint_manifest import read_manifest

TOLERANCE = 1e-3
"""Nats a token: float32 sums in another order differ by about 1e-6; codes of 8 bits that tip over by 1e-4."""
ROUNDED = 2e-2
"""Of weights that the export stores in 16 bits, which the loss was not measured with."""
_BATCH = 8


@dataclass
class Verdict:
    """What was checked.

    Attributes:
        whole: files that are what was written.
        damaged: what is wrong, a line each.
        unknown: files that nothing was noted of, or what else could not be checked, a line each.
        losses: what was measured, a line each.
    """

    whole: int = 0
    damaged: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)


def verify(folder: Path, tokens: Path | None = None) -> Verdict:
    """Check every file of a run folder or an export; with its tokens, the loss of what is exported.

    Args:
        folder: a run folder, or an exported folder. Tokens are those of the run that it is or lies in.
        tokens: the validation tokens (a `.bin` with its description) or a folder that has them, for an export
            elsewhere.

    Raises:
        UserError: neither a run folder nor an export; or no tokens at `tokens`.
    """
    verdict = Verdict()
    text = None if tokens is None else _text(tokens)
    if (folder / ABOUT_FILE).is_file():
        _verify_export(verdict, folder, text or _beside(folder))
    elif RunFolder(folder).manifest.is_file():
        _verify_run(verdict, RunFolder(folder))
        for export in sorted(path.parent for path in (folder / "export").glob(f"*/{ABOUT_FILE}")):
            _verify_export(verdict, export, text or _beside(export))
    else:
        raise UserError(f"{folder}: neither a run folder (no manifest.json) nor an export (no {ABOUT_FILE})")
    return verdict


def _text(path: Path) -> Path:
    """The validation tokens that a user means."""
    for found in (path, path / "validation.bin", path / "data" / "validation.bin"):
        if found.is_file():
            return found
    raise UserError(f"--tokens {path}: no validation.bin there")


def _beside(export: Path) -> Path | None:
    """The validation tokens of the run that an export lies in."""
    found = RunFolder(export.parent.parent).tokens("validation")
    return found if found.is_file() else None


def _try(verdict: Verdict, check: Any, *arguments: Any) -> None:
    try:
        check(*arguments)
        verdict.whole += 1
    except UserError as error:
        verdict.damaged.append(str(error))


def _verify_run(verdict: Verdict, run: RunFolder) -> None:
    noted = run.ledger.files()
    if noted is None:
        verdict.unknown.append(f"{run.path}: made before files had hashes")
    for name in noted or {}:
        path = inside(run.path, name)
        if path.exists():
            _try(verdict, run.check, path)
        else:
            verdict.damaged.append(f"{path}: no such file, though the manifest notes it")
    for side in ("train", "validation"):
        if run.tokens(side).exists():
            _try(verdict, lambda path: TokenFile.open(path).verify(), run.tokens(side))
    if run.stores.exists():
        _try(verdict, lambda run: TokenFile.of_several(training_files(run)[0]).verify(), run)
    for manifest in sorted(run.path.rglob("step-*/files.json")):
        _try(verdict, lambda path: verify_checkpoint(path, read_manifest(path).identity), manifest.parent)
    for path in _unnoted(run, set(noted or {})):
        verdict.unknown.append(f"{path}: no hash was noted of it")


def _unnoted(run: RunFolder, noted: set[str]) -> Iterator[Path]:
    """Files that later stages read and that nothing is known of."""
    results, weights = run.path.glob("*/result.json"), run.path.rglob("*.safetensors")
    for path in (run.evaluations, run.pareto, run.decision, *results, *weights):
        inner = path.relative_to(run.path)
        if path.exists() and inner.as_posix() not in noted and inner.parts[0] != "export" and "step-" not in str(inner):
            yield path


def _verify_export(verdict: Verdict, folder: Path, text: Path | None) -> None:
    try:
        hashes = read_hashes(folder)
    except UserError as error:
        verdict.damaged.append(str(error))
        return
    if hashes is None:
        verdict.unknown.append(f"{folder}: exported before files had hashes")
        return
    bad = damages(folder, hashes)
    verdict.damaged += bad.values()
    verdict.whole += len(hashes.files) - len(bad)
    if hashes.measured is None:
        verdict.unknown.append(f"{folder}: no loss is told of it as a whole")
    elif text is None:
        verdict.unknown.append(f"{folder}: hashes alone; its loss can be measured beside its run, or with --tokens")
    elif not bad:
        _verify_loss(verdict, folder, hashes.measured, text)


def _verify_loss(verdict: Verdict, folder: Path, measured: Measured, text: Path) -> None:
    """Measure the loss on the stored windows and compare it with what the card tells."""
    try:
        file = TokenFile.open(text)
        if tuple(shard.sha256 for shard in file.info.shards) != measured.tokens:
            raise UserError(f"{text}: not the text that the loss of {folder} was measured on")
        windows = Sequences(file.tokens, measured.seq_len, 0).fixed(measured.windows)
        found = float(exported_losses(load_model(folder), windows, measured.document_end).mean())
    except UserError as error:
        verdict.damaged.append(str(error))
        return
    line = f"{folder}: val_loss {found:.6f} on {len(windows)} windows, its card says {measured.val_loss:.6f}"
    full = read_json(folder / "config.json").get("dtype", "float32") == "float32"
    if abs(found - measured.val_loss) <= (TOLERANCE if full else ROUNDED):
        verdict.losses.append(line)
    else:
        verdict.damaged.append(f"{line}: another model than the one it was measured of")


@torch.no_grad()
def exported_losses(model: Any, windows: np.ndarray, document_end: int | None) -> np.ndarray:
    """[count] mean cross entropy of windows ([count, seq + 1]) in nats a token, from the model's own logits.

    Args:
        model: as transformers loads it.
        document_end: the token that attention does not go beyond.
    """
    found = []
    for first in range(0, len(windows), _BATCH):
        batch = torch.from_numpy(windows[first : first + _BATCH])
        tokens, targets = batch[:, :-1], batch[:, 1:]
        documents = document_numbers(tokens, document_end)
        if documents is None:
            logits = model(tokens).logits
        elif isinstance(model, LlmnasForCausalLM):
            logits = model.model(tokens, documents=documents)
        else:
            same = documents[:, :, None] == documents[:, None, :]
            seen = same & torch.ones(same.shape[1:], dtype=torch.bool).tril()
            mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
            logits = model(tokens, attention_mask=mask[:, None]).logits
        losses = functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
        found.append(losses.double().mean(1).numpy())
    return np.concatenate(found)
