"""Kinds of numbers among the knobs of training (no torch)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt

Decay = Annotated[float, Field(ge=0, lt=1)]
"""Of a moving average."""


def _auto_or_number(value: object) -> object:
    if value != "auto" and not (isinstance(value, int) and value >= 0):
        raise ValueError("must be auto, a number of threads, or 0 for all")
    return value


ThreadCount = Annotated[Literal["auto"] | NonNegativeInt, BeforeValidator(_auto_or_number)]
"""`auto`, or so many; 0 is all."""
