"""Prepared text that runs share: one that lies beside a run with the same text and settings links to its files.

So other training settings, and the trials of a sweep, make no tokens again. Every run has its own names for the same
files, so any of the folders may be deleted. Two runs that begin at the same time both prepare.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from llmnas.data import SIDES, Corpus, Reading, Store, TokenFile, open_corpus
from llmnas.data.plan import sources_of
from llmnas.data.store import FILE
from llmnas.errors import UserError
from llmnas.files import sha256
from llmnas.pipeline.context import Context
from llmnas.runs import RunFolder, identity

_LOG = logging.getLogger(__name__)


def corpus_of(context: Context) -> Corpus:
    """The files of the run's `data.source`; raises as `open_corpus`."""
    data = context.config.data
    return open_corpus(data.source, Reading(data.text_field, data.bad_rows, data.follow_links))


def key_of(context: Context, corpus: Corpus) -> str:
    """Stands for everything that the tokens of a run depend on: settings, and name, size and time of every file."""
    config = context.config
    settings = config.data.model_dump(mode="json", exclude={"source"})
    if config.data.tokenizer is not None:
        settings["tokenizer"] = sha256(Path(config.data.tokenizer) / "tokenizer.json")
    files = [file.model_dump() for file in sources_of(corpus).values()]
    return identity(settings, config.seed, config.space.base.vocab_size, files)


def take_shared(context: Context, key: str) -> bool:
    """Link what a run beside this one has prepared into the run folder; False where there is nothing of that key."""
    for path in sorted(context.run.path.parent.glob(f"*/data/{FILE}")):
        other = RunFolder(path.parent.parent)
        facts = {name: value for name, value in _facts(other, key).items() if name != "ended"}
        if facts:
            _link(path.parent, context.run.tokenizer.parent)
            context.run.record("prepare", **facts)
            return True
    return False


def _facts(run: RunFolder, key: str) -> dict[str, object]:
    """What a run noted of its tokens; nothing where they are of another key, or damaged."""
    try:
        if Store.open(run.tokenizer.parent).info.key != key:
            return {}
        for side in SIDES:
            TokenFile.open(run.tokens(side)).verify()  # what is damaged there is made anew here
        return run.recorded("prepare")
    except UserError:  # another run's fault is not this one's
        return {}


def tell_new_text(context: Context) -> None:
    """Say so where `data.source` has changed since this run was prepared: its tokens stay."""
    path = context.run.tokenizer.with_name(FILE)
    if not path.exists():
        return
    try:
        corpus = corpus_of(context)
        same = Store.open(path.parent).info.key == key_of(context, corpus)
    except UserError:  # the text is gone, and is not needed any more
        return
    if not same:
        _LOG.warning(
            "data.source %s: has changed since this run was prepared, and its tokens stay: tokenizer and split were "
            "made of all of the text. New text needs another --run-dir, or a store, which reads only what is new "
            "(llmnas prepare SOURCE --out STORE)",
            corpus.source,
        )


def _link(source: Path, target: Path) -> None:
    """Every file of one folder in another; what says that it is whole comes last."""
    target.mkdir(parents=True, exist_ok=True)
    files = [path for path in source.iterdir() if path.is_file() and not path.name.startswith(".")]
    described = {FILE, *(f"{side}.json" for side in SIDES)}
    for path in sorted(files, key=lambda path: (path.name in described, path.name == FILE, path.name)):
        there = target / path.name
        there.unlink(missing_ok=True)
        try:
            os.link(path, there)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, there)
