"""Prepared text that the trials of one W&B sweep share: the first one makes it, the others link to its files.

It lies beside the trials' run folders, one folder for everything that tokens depend on. A trial has its own names for
the same files, so any of the folders may be deleted. Two trials that begin at the same time both prepare, and the first
to end is kept.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from llmnas.data import SIDES
from llmnas.files import read_json, write_json
from llmnas.pipeline.context import Context
from llmnas.runs import identity

FOLDER = "shared_data"
_FACTS = "prepare.json"


def take_shared(context: Context) -> bool:
    """Link what another trial of this sweep has prepared into the run folder; False where there is nothing."""
    shared = _place(context)
    if shared is None or not (shared / _FACTS).is_file():
        return False
    facts = read_json(shared / _FACTS)
    _link(shared, context.run.tokenizer.parent)
    context.run.record("prepare", **facts)
    return True


def share(context: Context) -> None:
    """Let the other trials of this sweep have what was prepared here; nothing outside of a sweep."""
    shared = _place(context)
    if shared is None:
        return
    partial = shared.with_name(f".{shared.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _link(context.run.tokenizer.parent, partial)
    facts = {name: value for name, value in context.run.recorded("prepare").items() if name != "ended"}
    write_json(partial / _FACTS, facts)
    try:
        partial.rename(shared)
    except OSError:  # another trial was faster
        shutil.rmtree(partial)


def _place(context: Context) -> Path | None:
    sweep = os.environ.get("WANDB_SWEEP_ID")
    if not sweep:
        return None
    config = context.config
    key = identity(sweep, config.data.model_dump(mode="json"), config.seed, config.space.base.vocab_size)
    return context.run.path.parent / FOLDER / key


def _link(source: Path, target: Path) -> None:
    """Every file of one folder in another; what says that a token file is whole comes last."""
    target.mkdir(parents=True, exist_ok=True)
    files = [path for path in source.iterdir() if path.is_file() and path.name != _FACTS]
    for path in sorted(files, key=lambda path: (path.stem in SIDES and path.suffix == ".json", path.name)):
        there = target / path.name
        there.unlink(missing_ok=True)
        try:
            os.link(path, there)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, there)
