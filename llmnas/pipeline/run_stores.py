"""Token stores that a run names: bound to it by hash when it is prepared, read from where they lie.

The run keeps a copy of the text that it is measured on, so its numbers can be had again without the stores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from pydantic import BaseModel as Model
from pydantic import ConfigDict, PositiveFloat

from llmnas.config import Config
from llmnas.data import (
    SIDES,
    ModelTokenizer,
    Store,
    TokenFile,
    copy_tokenizer,
    load_tokenizer,
    save_tokenizer,
    token_writer,
)
from llmnas.data.store import FILE
from llmnas.errors import UserError
from llmnas.files import read_as, regular, sha256, write_json
from llmnas.runs import RunFolder

MOST_HELD_OUT = 1 << 24
"""Tokens that a run copies of each text that it is measured on, spread over it."""
_PIECE = 1 << 16


class _Bound(Model):
    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    weight: PositiveFloat
    sha256: str  # of the description of its tokens, which has the hashes of all of them


class _Stores(Model):
    model_config = ConfigDict(frozen=True, extra="forbid")

    train: tuple[_Bound, ...]
    held_out: tuple[str, ...]  # names of the texts that are measured


def bind_stores(config: Config, run: RunFolder, model: ModelTokenizer | None) -> dict[str, int]:
    """Write the run's `data/`: the tokenizer of its stores, a copy of what is measured, and which stores these were.

    Returns:
        Facts for the manifest.

    Raises:
        UserError: a store that is missing, damaged, of another tokenizer or vocabulary than the others or the config,
            or without text on the side that is needed.
    """
    opened = {path: Store.open(Path(path)) for path in (store.path for store in config.data.tokens)}
    opened |= {path: Store.open(Path(path)) for path in config.data.held_out.values() if path not in opened}
    _require_alike(config, list(opened.values()), model)
    train = [opened[store.path].tokens("train") for store in config.data.tokens]
    measured = {name: opened[path].tokens("validation") for name, path in config.data.held_out.items()}
    if model is None:
        tokenizer = load_tokenizer(next(iter(opened.values())).path / run.tokenizer.name)
        save_tokenizer(tokenizer, run.tokenizer, run.seal)
    else:
        copy_tokenizer(model, run.tokenizer.parent)
    _copy(run, measured)
    bound = [
        _Bound(path=store.path, weight=store.weight, sha256=_hash(file))
        for store, file in zip(config.data.tokens, train, strict=True)
    ]
    write_json(run.stores, _Stores(train=tuple(bound), held_out=tuple(measured)).model_dump(mode="json"), run.seal)
    sums = {"train": train, "validation": [TokenFile.open(run.tokens("validation"))]}
    facts = {f"{side}_documents": sum(file.info.documents for file in sums[side]) for side in SIDES}
    facts |= {f"{side}_tokens": sum(file.info.tokens for file in sums[side]) for side in SIDES}
    return facts | {f"{side}_bytes": sum(file.info.text_bytes for file in sums[side]) for side in SIDES}


def training_files(run: RunFolder) -> tuple[list[TokenFile], list[float]]:
    """The tokens of every store that the run was bound to, and the weight of each.

    Raises:
        UserError: a store is gone, or has other tokens than when the run was prepared.
    """
    files, stores = [], read_as(run.require(run.stores, "prepare"), _Stores).train
    for bound in stores:
        file = Store.open(Path(bound.path)).tokens("train")
        if _hash(file) != bound.sha256:
            raise UserError(
                f"{bound.path}: has other tokens than when this run was prepared; use another --run-dir for them"
            )
        files.append(file)
    return files, [bound.weight for bound in stores]


def measured_files(run: RunFolder) -> dict[str, TokenFile]:
    """The run's copy of every named text that is measured; nothing where a source was split."""
    if not run.stores.exists():
        return {}
    names = read_as(run.stores, _Stores).held_out
    return {name: TokenFile.open(run.tokens(f"validation-{name}")) for name in names}


def _hash(file: TokenFile) -> str:
    return sha256(file.path.with_suffix(".json"))


def _require_alike(config: Config, stores: list[Store], model: ModelTokenizer | None) -> None:
    first, wanted = stores[0], config.space.base.vocab_size
    for store in stores:
        tokenizer = regular(store.path / "tokenizer.json")
        if sha256(tokenizer) != store.info.tokenizer_sha256:
            raise UserError(
                f"{tokenizer}: not the tokenizer that its tokens were made with (SHA-256 differs from {FILE})"
            )
        if store.info.tokenizer_sha256 != first.info.tokenizer_sha256:
            raise UserError(
                f"data.tokens: {store.path} has another tokenizer than {first.path}; prepare one of them again with "
                f"--tokenizer {first.path}"
            )
    if first.info.vocab_size != wanted:
        raise UserError(
            f"{first.path / FILE}: its vocabulary has {first.info.vocab_size:,} entries, space.base.vocab_size is "
            f"{wanted:,}; set it to {first.info.vocab_size}"
        )
    of_model = (first.path / "generation_config.json").is_file()
    if model is None and of_model:
        raise UserError(
            f"{first.path}: its tokens are those of a pretrained model; set data.tokenizer to that model's folder"
        )
    if model is not None and sha256(model.path) != first.info.tokenizer_sha256:
        raise UserError(f"data.tokenizer: {model.path} is not the tokenizer of {first.path}")


def _copy(run: RunFolder, measured: dict[str, TokenFile]) -> None:
    """Write every measured text by itself, and all of them one after the other as the run's validation text."""
    with ExitStack() as stack:
        first = next(iter(measured.values())).info
        size = sum(_copied_bytes(file) for file in measured.values())
        every = stack.enter_context(
            token_writer(run.tokens("validation"), first.vocab_size, first.eos_id, size, seal=run.seal)
        )
        for name, file in measured.items():
            info = file.info
            with token_writer(
                run.tokens(f"validation-{name}"), info.vocab_size, info.eos_id, _copied_bytes(file), seal=run.seal
            ) as own:
                for ids in _spread(file):
                    own.add(ids)
                    every.add(ids)


def _copied_bytes(file: TokenFile) -> int:
    """Bytes of the text that `_spread` takes, those of all text in proportion to the tokens."""
    return round(file.info.text_bytes * sum(len(ids) + 1 for ids in _spread(file)) / file.info.tokens)


def _spread(file: TokenFile) -> Iterator[list[int]]:
    """Documents without their ends, from evenly spaced pieces of `MOST_HELD_OUT` tokens together, or all."""
    tokens, end = file.tokens, file.info.eos_id
    every = max(1, -(-len(tokens) // MOST_HELD_OUT))
    left: list[np.ndarray] = []
    for first in range(0, len(tokens), _PIECE * every):
        ids = np.asarray(tokens[np.arange(first, min(first + _PIECE, len(tokens)))])
        *whole, rest = np.split(ids, np.flatnonzero(ids == end) + 1)
        for part in whole:
            yield np.concatenate([*left, part])[:-1].tolist()
            left = []
        left.append(rest)
        if every > 1 and any(len(part) for part in left):  # the next piece is of other documents
            yield np.concatenate(left).tolist()
            left = []
