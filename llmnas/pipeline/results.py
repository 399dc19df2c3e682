"""What stages leave in the run folder for later ones, as kinds that are checked when they are read back.

Each is the JSON that its stage writes; keys that only some versions or settings write are not required, keys that
nobody reads back are let through.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from annotated_types import MinLen
from pydantic import AfterValidator, ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveInt, with_config
from typing_extensions import TypedDict

from llmnas.errors import UserError
from llmnas.files import as_kind, read_as
from llmnas.runs import RunFolder
from llmnas.space import Architecture

_open = with_config(ConfigDict(extra="allow"))


def _architecture(value: dict[str, Any]) -> dict[str, Any]:
    try:
        Architecture.from_dict(value)
    except UserError as error:
        raise ValueError(str(error)) from None
    return value


StoredArchitecture = Annotated[dict[str, Any], AfterValidator(_architecture)]
Name = Annotated[str, MinLen(1)]
Nats = Annotated[float, Field(ge=-500, le=500, allow_inf_nan=False)]  # beyond, the perplexity is no number


@_open
class Trained(TypedDict):
    """One network that was trained alone; in the order it is written, so that what is read back is the same text."""

    identity: str
    id: str
    architecture: StoredArchitecture
    seed: NonNegativeInt
    start: NotRequired[str]
    params: PositiveInt
    tokens: NonNegativeInt
    lr: NotRequired[FiniteFloat]
    cpu_seconds: NotRequired[FiniteFloat | None]
    val_loss: Nats
    perplexity: FiniteFloat
    bits_per_byte: FiniteFloat
    val_loss_by_text: NotRequired[dict[str, Nats]]


Runs = Annotated[list[Trained], MinLen(1)]


@_open
class Against(TypedDict):
    """A paired comparison of two networks' runs."""

    against: str
    difference: Nats
    clear: bool
    of: NotRequired[str]
    low: NotRequired[Nats]
    high: NotRequired[Nats]


def _with_found(runs: dict[str, Any]) -> dict[str, Any]:
    if "found" not in runs:
        raise ValueError("no network `found` in it")
    return runs


@_open
class Retrained(TypedDict):
    """`retrain/result.json`."""

    found: str
    runs: Annotated[dict[str, Runs], AfterValidator(_with_found)]
    comparisons: list[Against]


@_open
class Decision(TypedDict):
    """`decision.json`."""

    chosen: str
    reason: Literal["decided", "equal", "exhausted"]
    price: str
    confidence: FiniteFloat
    windows: Annotated[dict[str, NonNegativeInt], MinLen(1)]
    statements: list[str]


@_open
class Rung(TypedDict):
    """One depth of the ladder."""

    depth: PositiveInt
    kept: list[NonNegativeInt]
    exhaustive: bool
    params: PositiveInt
    architecture: StoredArchitecture
    loss: FiniteFloat
    first_layers: FiniteFloat
    even_layers: FiniteFloat
    alone: list[FiniteFloat]


@_open
class Laddered(TypedDict):
    """`ladder/result.json`."""

    windows: PositiveInt
    seeds: NonNegativeInt
    rungs: Annotated[list[Rung], MinLen(1)]


class Estimate(TypedDict):
    """A number with its 95 % interval."""

    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat


class NearPairs(Estimate):
    """Agreement on pairs of about one size."""

    pairs: NonNegativeInt
    width: FiniteFloat


class RankAgreement(TypedDict):
    """Rank correlation with its 95 % interval; NaN where a score is the same for all."""

    tau: float
    low: float
    high: float
    spearman: float


class StoredBand(TypedDict):
    """Agreement among networks of about one size."""

    low: FiniteFloat
    high: FiniteFloat
    networks: PositiveInt
    tau: Estimate


@_open
class Conflict(TypedDict):
    """How the gradients of two networks stand to each other."""

    cosine: FiniteFloat
    opposed: FiniteFloat


class Conflicts(TypedDict, total=False):
    """Of all pairs; empty where it was not measured."""

    windows: PositiveInt
    pairs: Annotated[list[Conflict], MinLen(1)]


class Spent(TypedDict, total=False):
    """CPU seconds of each stage."""

    supernet: FiniteFloat | None
    search: FiniteFloat | None
    adapt: list[FiniteFloat | None]
    stand_alone: list[FiniteFloat | None]


@_open
class Correlated(TypedDict):
    """`correlate/result.json`."""

    architectures: Annotated[list[StoredArchitecture], MinLen(1)]
    supernet_loss: list[FiniteFloat]
    stand_alone_loss: Annotated[list[list[FiniteFloat]], MinLen(1)]
    params: list[PositiveInt]
    agreement: dict[str, RankAgreement]
    near_pairs: NotRequired[dict[str, NearPairs]]
    regret: NotRequired[dict[str, dict[str, Estimate]]]
    bands: NotRequired[dict[str, list[StoredBand]]]
    conflicts: NotRequired[Conflicts | None]
    cpu_seconds: NotRequired[Spent]


@_open
class Decoded(TypedDict):
    """`darts/result.json`."""

    architectures: list[StoredArchitecture]


@_open
class Answer(TypedDict):
    """What an extraction found for one target."""

    metric: str
    limit: FiniteFloat


@_open
class Extracted(TypedDict):
    """`extract/METHOD.json`."""

    targets: list[Answer]


@_open
class SearchFacts(TypedDict, total=False):
    """What the manifest notes of a search."""

    evaluations: NonNegativeInt
    windows: PositiveInt
    windows_missing: int
    provenance: dict[str, str]
    cpu_seconds: FiniteFloat | None
    candidates_per_hour: FiniteFloat
    processes: PositiveInt
    strategy_share: FiniteFloat
    dropped: NonNegativeInt
    windows_share: FiniteFloat


@_open
class ExportFacts(TypedDict):
    """What the manifest notes of an export."""

    folder: Name
    of: NotRequired[str]


@_open
class TrainFacts(TypedDict, total=False):
    """What the manifest notes of a training."""

    tokens: NonNegativeInt
    cpu_seconds: FiniteFloat | None


def retrained(run: RunFolder) -> Retrained:
    """What `retrain` found; `UserError` where it has not run, or its file is damaged."""
    return read_as(run.require(run.result("retrain"), "retrain"), Retrained)


def laddered(run: RunFolder) -> Laddered:
    """What `ladder` found; raises as `retrained`."""
    return read_as(run.require(run.result("ladder"), "ladder"), Laddered)


def correlated(run: RunFolder) -> Correlated:
    """What `correlate` found, every list a value for each architecture; raises as `retrained`."""
    path = run.require(run.result("correlate"), "correlate")
    found = read_as(path, Correlated)
    lists: list[list[Any]] = [found["supernet_loss"], found["params"], *found["stand_alone_loss"]]
    if any(len(values) != len(found["architectures"]) for values in lists):
        raise UserError(f"{path}: damaged: not a value for each architecture; delete it to have it made again")
    return found


def decided(run: RunFolder) -> Decision:
    """What the search decided; raises as `retrained`."""
    return read_as(run.require(run.decision, "search"), Decision)


def trained(path: Path) -> Trained:
    """The result beside the weights of a network that was trained alone."""
    return read_as(path, Trained)


def search_facts(run: RunFolder) -> SearchFacts:
    """What the manifest notes of the search; empty where it has not ended."""
    return as_kind(run.recorded("search"), SearchFacts, run.manifest)


def train_facts(run: RunFolder, stage: str) -> TrainFacts:
    """What the manifest notes of a training (`train`, `correction`); empty where it has not ended."""
    return as_kind(run.recorded(stage), TrainFacts, run.manifest)


def export_facts(run: RunFolder) -> ExportFacts | None:
    """What the manifest notes of the export; None where there is none."""
    found = run.recorded("export")
    return as_kind(found, ExportFacts, run.manifest) if found else None
