"""Kinds of numbers among the knobs of training, and what every section of them is (no torch)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel as Model
from pydantic import BeforeValidator, ConfigDict, Field, NonNegativeInt

Decay = Annotated[float, Field(ge=0, lt=1)]
"""Of a moving average."""


def _auto_or_number(value: object) -> object:
    if value != "auto" and not (isinstance(value, int) and value >= 0):
        raise ValueError("must be auto, a number of threads, or 0 for all")
    return value


ThreadCount = Annotated[Literal["auto"] | NonNegativeInt, BeforeValidator(_auto_or_number)]
"""`auto`, or so many; 0 is all."""


class Strict(Model):
    """Frozen; unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def changed(section: Model) -> set[str]:
    """Fields that differ from their defaults.

    What a user wrote is told by value: a stored config writes every key, and must be one that can be read again.
    """
    fields = type(section).model_fields
    return {name for name in fields if getattr(section, name) != fields[name].get_default(call_default_factory=True)}
