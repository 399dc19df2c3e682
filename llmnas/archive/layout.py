"""How an archive lies in its SQLite file: this layout, and those before it."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from llmnas.errors import UserError
from llmnas.files import parse_json
from llmnas.pareto import Evaluation
from llmnas.space import Architecture

LAYOUT = 2
"""`PRAGMA user_version` of a file. Layout 0 kept the marks among the metrics and the batch in the identity; layout 1
had no log, but with every evaluation how many were asked for at once."""
PATIENCE = 5.0
"""Seconds that a lock of another process is waited for."""
_MARKS = {"proposed": "INTEGER NOT NULL DEFAULT 0", "dropped_after_windows": "INTEGER", "batch": "INTEGER"}
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS search (id INTEGER PRIMARY KEY CHECK (id = 0), identity TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS evaluations"
    " (idx INTEGER PRIMARY KEY, arch TEXT NOT NULL UNIQUE, metrics TEXT NOT NULL, failure TEXT)",
    "CREATE TABLE IF NOT EXISTS log (number INTEGER PRIMARY KEY, event TEXT NOT NULL)",
)
INSERT = (
    "INSERT INTO evaluations (idx, arch, metrics, failure, proposed, dropped_after_windows) VALUES (?, ?, ?, ?, ?, ?)"
)
INSERT_EVENT = "INSERT INTO log (number, event) VALUES (?, ?)"
_SELECT = (
    "SELECT idx, arch, metrics, failure, proposed, dropped_after_windows, batch FROM evaluations"
    " WHERE idx >= ? ORDER BY idx"
)
_SELECT_FIRST_LAYOUT = "SELECT idx, arch, metrics, failure, 0, NULL, NULL FROM evaluations WHERE idx >= ? ORDER BY idx"


def is_of_first_layout(db: sqlite3.Connection) -> bool:
    """Whether the evaluations have no columns for marks yet."""
    return "proposed" not in {row[1] for row in db.execute("PRAGMA table_info(evaluations)")}


def require_known_layout(db: sqlite3.Connection, path: str | Path) -> None:
    """Refuse, as a `UserError`, a file that a newer version wrote."""
    (layout,) = db.execute("PRAGMA user_version").fetchone()
    if layout > LAYOUT:
        raise UserError(f"{path}: written by a newer version of llmnas (layout {layout}); update llmnas to read it")


def rows_of(db: sqlite3.Connection, after: int = 0) -> Iterator[tuple[Evaluation, int | None]]:
    """(evaluation, batch) from number `after` on, of either layout."""
    first = is_of_first_layout(db)
    rows = db.execute(_SELECT_FIRST_LAYOUT if first else _SELECT, (after,))
    for index, arch, metrics, failure, proposed, dropped, batch in rows:
        values = _metrics(metrics)
        if not (failure is None or isinstance(failure, str)):
            raise ValueError(f"evaluation {index}: its failure is no text")
        if first:
            proposed, dropped = _take_marks(values)
        yield Evaluation(Architecture.from_json(arch), values, failure, index, bool(proposed), dropped), batch


def _metrics(text: object) -> dict[str, float]:
    """Finite numbers by name, else a `ValueError`."""
    values = parse_json(text) if isinstance(text, str) else None
    if not isinstance(values, dict):
        raise ValueError("metrics that are no mapping")
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"metric {name} is no number")
    return values


def identity_of(text: object) -> dict[str, Any]:
    """What is stored of a search: objectives, constraints and whatever tells it apart, else a `ValueError`."""
    found = parse_json(text) if isinstance(text, str) else None
    if not isinstance(found, dict):
        raise ValueError("the search's identity is no mapping")
    objectives, constraints = found.get("objectives", {}), found.get("constraints", {})
    if not isinstance(objectives, dict) or any(way not in ("min", "max") for way in objectives.values()):
        raise ValueError("objectives that have no direction")
    bounds = constraints.values() if isinstance(constraints, dict) else [None]
    for ends in bounds:
        two = ends if isinstance(ends, list) and len(ends) == 2 else []
        if not two or not all(end is None or type(end) in (int, float) for end in two):
            raise ValueError("constraints that are no bounds")
    return found


def require_objectives(evaluation: Evaluation, names: Collection[str]) -> None:
    """A `ValueError` where an evaluation that did not fail was not measured by all that it is judged by."""
    missing = [] if evaluation.failure is not None else [name for name in names if name not in evaluation.metrics]
    if missing:
        raise ValueError(f"evaluation {evaluation.index} has no {missing[0]}")


def _take_marks(metrics: dict[str, float]) -> tuple[bool, int | None]:
    """(proposed, dropped after windows) out of the metrics of the first layout."""
    dropped = metrics.pop("dropped_after_windows", None)
    return metrics.pop("proposed", None) is not None, None if dropped is None else int(dropped)


def events_of(db: sqlite3.Connection) -> list[str]:
    """The log, in order; a `ValueError` where an event is missing."""
    found = db.execute("SELECT number, event FROM log ORDER BY number").fetchall()
    if [number for number, _ in found] != list(range(len(found))):
        raise ValueError("an event of the log is missing")
    return [event for _, event in found]


def add_marks(db: sqlite3.Connection, identity: dict[str, Any]) -> None:
    """Give a file of the first layout, or a new one, the columns for marks; within a transaction."""
    for name, kind in _MARKS.items():
        db.execute(f"ALTER TABLE evaluations ADD COLUMN {name} {kind}")
    batch = identity.pop("batch", None)
    for index, text in db.execute("SELECT idx, metrics FROM evaluations").fetchall():
        metrics = _metrics(text)
        proposed, dropped = _take_marks(metrics)
        db.execute(
            "UPDATE evaluations SET metrics = ?, proposed = ?, dropped_after_windows = ?, batch = ? WHERE idx = ?",
            (json.dumps(metrics), int(proposed), dropped, None if proposed else batch, index),
        )
    db.execute("UPDATE search SET identity = ?", (json.dumps(identity),))
