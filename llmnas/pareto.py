"""Evaluations, Pareto dominance, and the archive on disk that holds every evaluation of one search.

Conventions: an objective is a metric to be made small ("min") or great ("max"). A constraint is an
upper bound on a metric, or a pair (low, high) with None for an open end; both ends are inclusive.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import moocore  # type: ignore[import-untyped]
import numpy as np

from llmnas.errors import RunError, UserError
from llmnas.files import sync_dir
from llmnas.space import Architecture

Direction = Literal["min", "max"]
Objectives = Mapping[str, Direction]
Bound = float | Sequence[float | None]
Constraints = Mapping[str, Bound]

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS search (id INTEGER PRIMARY KEY CHECK (id = 0), identity TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS evaluations"
    " (idx INTEGER PRIMARY KEY, arch TEXT NOT NULL UNIQUE, metrics TEXT NOT NULL, failure TEXT)",
)

PROPOSED = "proposed"
"""A metric that marks what no search asked for (a proposal of `llmnas analyse`): a search goes on as without it."""
DROPPED = "dropped_after_windows"
"""A metric that marks what successive halving dropped: a failed evaluation, the number of windows it was run on."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one architecture.

    Attributes:
        metrics: finite numbers by metric name; a metric that was NaN or infinite is left out.
        failure: why the evaluation failed, None where it did not. A failed one is never on a front.
        index: its position in the search, from 0.
    """

    arch: Architecture
    metrics: dict[str, float]
    failure: str | None = None
    index: int = 0


def check_objectives(objectives: Objectives) -> dict[str, Direction]:
    """The objectives themselves, or a `UserError` where there is none or a direction is unknown."""
    if not objectives:
        raise UserError("objectives: none given; name at least one metric with min or max")
    for name, direction in objectives.items():
        if direction not in get_args(Direction):
            raise UserError(f"objectives: {name}: {direction!r} is not a direction; allowed: min, max")
    return dict(objectives)


def _interval(name: str, bound: Bound) -> tuple[float, float]:
    """(low, high) of a constraint, open ends infinite."""
    ends: Sequence[Any] = bound if isinstance(bound, list | tuple) else (None, bound)
    try:
        low, high = ends
        low = -math.inf if low is None else float(low)
        high = math.inf if high is None else float(high)
    except (TypeError, ValueError):
        raise UserError(f"constraints: {name}: {bound!r} is neither an upper bound nor a (low, high) pair") from None
    if not low <= high or (math.isinf(low) and math.isinf(high)):
        raise UserError(f"constraints: {name}: {bound!r} bounds nothing; low <= high and one end must be a number")
    return low, high


def check_constraints(constraints: Constraints) -> dict[str, tuple[float, float]]:
    """Every constraint as (low, high) with infinite open ends; a `UserError` where one is malformed."""
    return {name: _interval(name, bound) for name, bound in constraints.items()}


def minimised(metrics: Mapping[str, float], objectives: Objectives) -> list[float]:
    """The objectives' values with the sign that makes less better, `[objectives]`."""
    return [metrics[name] * (1 if way == "min" else -1) for name, way in objectives.items()]


def violations(metrics: Mapping[str, float], constraints: Constraints) -> list[float]:
    """How far each constraint is missed, `[constraints]`, in units of the bound; 0 where it holds."""
    missed = []
    for name, bound in constraints.items():
        low, high = _interval(name, bound)
        value = metrics[name]
        end = low if value < low else high
        missed.append(0.0 if low <= value <= high else abs(value - end) / (abs(end) or 1.0))
    return missed


def dominates(a: Evaluation, b: Evaluation, objectives: Objectives) -> bool:
    """Whether `a` is at least as good as `b` in every objective and better in one; a failure loses to any success."""
    if a.failure is not None or b.failure is not None:
        return a.failure is None and b.failure is not None
    ours, theirs = minimised(a.metrics, objectives), minimised(b.metrics, objectives)
    return ours != theirs and all(x <= y for x, y in zip(ours, theirs, strict=True))


def front(
    evaluations: Sequence[Evaluation], objectives: Objectives, constraints: Constraints | None = None
) -> list[Evaluation]:
    """The evaluations that succeeded, meet every constraint, and that no other such one dominates.

    In the order given. Equal points stay together: architectures that measure the same are all on the front.
    """
    feasible = [e for e in evaluations if e.failure is None and not any(violations(e.metrics, constraints or {}))]
    if not feasible:
        return []
    points = np.array([minimised(e.metrics, objectives) for e in feasible])
    best = moocore.is_nondominated(points, keep_weakly=True)
    return [e for e, keep in zip(feasible, best, strict=True) if keep]


def hypervolume(evaluations: Sequence[Evaluation], objectives: Objectives, reference: Mapping[str, float]) -> float:
    """The volume that the evaluations dominate up to the reference point (exact; moocore).

    In the product of the objectives' units. Points that are not better than the reference in every
    objective add nothing.

    Raises:
        UserError: the reference names other metrics than the objectives, or is not finite.
    """
    if set(reference) != set(objectives) or not all(math.isfinite(value) for value in reference.values()):
        raise UserError(f"reference: needs one finite number for each of {sorted(objectives)}, got {dict(reference)}")
    points = [minimised(e.metrics, objectives) for e in evaluations if e.failure is None]
    if not points:
        return 0.0
    return float(moocore.hypervolume(np.array(points), ref=minimised(reference, objectives)))


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys. None is left out: an option that is added later, and off, changes nothing."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{key}.")
        elif item is not None:
            flat[f"{prefix}{key}"] = item
    return flat


class Archive:
    """Every evaluation of one search, in order, each architecture once.

    A SQLite file in WAL mode with full synchronisation: when `append` returns, its rows survive
    kill -9 and a power cut; a batch is stored whole or not at all. One process writes.

    Args:
        path: the file, made where there is none; ":memory:" keeps everything in memory.
        identity: plain values that say which search this is (space, strategy, seed and so on).
            An existing file must have been made with the same identity, objectives and constraints.

    Raises:
        UserError: the file is damaged, is no archive, or belongs to another search.
    """

    def __init__(
        self,
        path: str | Path,
        objectives: Objectives,
        constraints: Constraints | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = str(path)
        self.objectives = check_objectives(objectives)
        self.constraints = check_constraints(constraints or {})
        identity = {
            **(identity or {}),
            "objectives": self.objectives,
            "constraints": {
                name: [end if math.isfinite(end) else None for end in ends] for name, ends in self.constraints.items()
            },
        }
        self._rows: list[Evaluation] = []
        self._by_arch: dict[Architecture, Evaluation] = {}
        with _reading(self.path):
            if self.path != ":memory:":
                Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, isolation_level=None)
            try:
                self._open(json.dumps(identity))
            except BaseException:
                self._db.close()
                raise

    @classmethod
    def load(cls, path: str | Path, evaluation: Mapping[str, Any] | None = None) -> Self:
        """Open an archive with its own objectives and constraints; another `evaluation` than it has is refused."""
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file")
        with _reading(str(path)), contextlib.closing(sqlite3.connect(path)) as db:
            row = db.execute("SELECT identity FROM search").fetchone()
            if row is None:
                raise UserError(f"{path}: an archive without a search")
            stored = json.loads(row[0])
        stored |= {} if evaluation is None else {"evaluation": evaluation}
        return cls(path, stored.pop("objectives"), stored.pop("constraints"), stored)

    def _open(self, identity: str) -> None:
        tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and not {"search", "evaluations"} <= tables:
            raise UserError(f"{self.path}: a SQLite file, but not an archive of evaluations")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        (health,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if health != "ok":
            raise sqlite3.DatabaseError(health)
        with self._transaction():
            for statement in _SCHEMA:
                self._db.execute(statement)
            # A search that ended before its first evaluation (a mistake in its options, say) owns nothing.
            if self._db.execute("SELECT 1 FROM evaluations LIMIT 1").fetchone() is None:
                self._db.execute("INSERT OR REPLACE INTO search VALUES (0, ?)", (identity,))
        if self.path != ":memory:":
            sync_dir(Path(self.path).parent)
        (stored,) = self._db.execute("SELECT identity FROM search").fetchone()
        self._require_same(json.loads(stored), json.loads(identity))
        for row in self._db.execute("SELECT idx, arch, metrics, failure FROM evaluations ORDER BY idx"):
            index, arch, metrics, failure = row
            if index != len(self):
                raise sqlite3.DatabaseError(f"evaluation {len(self)} is missing")
            self._keep(Evaluation(Architecture.from_json(arch), json.loads(metrics), failure, index))

    def _require_same(self, stored: dict[str, Any], asked: dict[str, Any]) -> None:
        old, new = _flat(stored), _flat(asked if "evaluation" in stored else {**asked, "evaluation": None})
        changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        if changed:
            difference = ", ".join(f"{key}: {old.get(key)} -> {new.get(key)}" for key in changed)
            raise UserError(
                f"{self.path}: belongs to another search ({difference}); take another path or ask for the stored one"
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield

    def _keep(self, evaluation: Evaluation) -> None:
        self._rows.append(evaluation)
        self._by_arch[evaluation.arch] = evaluation

    def append(self, archs: Sequence[Architecture], results: Sequence[Mapping[str, float]]) -> list[Evaluation]:
        """Store what was measured of architectures that are not in the archive yet, in one transaction.

        A result with a NaN or infinite metric is stored as a failed evaluation.

        Raises:
            UserError: another number of results than architectures, a metric that is no number, or a result
                without an objective or a constrained metric. Nothing is stored then.
            RunError: the rows cannot be stored (full disk, or another process writes to this archive).
        """
        if len(results) != len(archs):
            raise UserError(f"evaluate: returned {len(results)} results for {len(archs)} architectures")
        pairs = zip(archs, results, strict=True)
        new = [self._judge(arch, result, len(self) + i) for i, (arch, result) in enumerate(pairs)]
        rows = [(e.index, e.arch.to_json(), json.dumps(e.metrics), e.failure) for e in new]
        try:
            with self._transaction():
                self._db.executemany("INSERT INTO evaluations VALUES (?, ?, ?, ?)", rows)
        except sqlite3.IntegrityError as error:
            raise RunError(
                f"{self.path}: another process writes to this archive, or it is stored twice ({error})"
            ) from None
        except sqlite3.DatabaseError as error:
            raise RunError(f"{self.path}: cannot store evaluations ({error})") from None
        for evaluation in new:
            self._keep(evaluation)
        return new

    def _judge(self, arch: Architecture, result: Mapping[str, float], index: int) -> Evaluation:
        try:
            metrics = {name: float(value) for name, value in result.items()}
        except (AttributeError, TypeError, ValueError, OverflowError):
            raise UserError(f"evaluate: must return a mapping from metric to number, got {result!r}") from None
        missing = [name for name in (*self.objectives, *self.constraints) if name not in metrics]
        if missing:
            raise UserError(f"evaluate: returned no {missing[0]!r}; it returned {sorted(metrics)}")
        wrong = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        dropped = [f"dropped after {metrics[DROPPED]:.0f} windows"] if DROPPED in metrics else []
        return Evaluation(arch, finite, ", ".join(dropped or wrong) or None, index)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """All evaluations, in the order they were made."""
        return tuple(self._rows)

    def get(self, arch: Architecture) -> Evaluation | None:
        """The evaluation of this architecture, None where it was not evaluated."""
        return self._by_arch.get(arch)

    def front(self) -> list[Evaluation]:
        """The Pareto front within the constraints; see `front`."""
        return front(self._rows, self.objectives, self.constraints)

    def hypervolume(self, reference: Mapping[str, float]) -> float:
        """The hypervolume of the front; see `hypervolume`."""
        return hypervolume(self.front(), self.objectives, reference)

    def close(self) -> None:
        """Close the file; what was read stays readable."""
        self._db.close()


def read_archive(
    path: str | Path, after: int = 0
) -> tuple[dict[str, Direction], dict[str, list[float | None]], list[Evaluation]]:
    """(objectives, constraints, evaluations from number `after` on) of an archive that a search may be writing now.

    Opens the file read-only, changes nothing and blocks nobody. Raises `UserError` as `Archive` does.
    """
    with _reading(str(path)):
        address = f"{Path(path).resolve(strict=True).as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as db:
            (stored,) = db.execute("SELECT identity FROM search").fetchone() or ("{}",)
            rows = db.execute(
                "SELECT idx, arch, metrics, failure FROM evaluations WHERE idx >= ? ORDER BY idx", (after,)
            ).fetchall()
        search = json.loads(stored)
        found = [Evaluation(Architecture.from_json(a), json.loads(m), why, index) for index, a, m, why in rows]
    return search.get("objectives", {}), search.get("constraints", {}), found


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turn what a damaged or unreachable file, or a full disk, raises into one line that names it."""
    try:
        yield
    except (sqlite3.Error, OSError, ValueError) as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}:
            raise RunError(f"{path}: cannot be written ({error}); is the disk full?") from None
        raise UserError(
            f"{path}: not a readable archive of evaluations ({error}); move it away to start anew"
        ) from None
