"""Opening, filling and reading an archive."""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from llmnas.archive import layout
from llmnas.archive.layout import (
    INSERT,
    INSERT_EVENT,
    LAYOUT,
    SCHEMA,
    add_marks,
    events_of,
    identity_of,
    is_of_first_layout,
    require_known_layout,
    require_objectives,
    rows_of,
)
from llmnas.archive.naming import named
from llmnas.archive.values import flat, numbers, plain
from llmnas.errors import RunError, UserError
from llmnas.files import regular, sync_dir, user_path
from llmnas.pareto import (
    Constraints,
    Direction,
    Evaluation,
    Failed,
    Objectives,
    Result,
    check_constraints,
    check_objectives,
    front,
    hypervolume,
    why_empty,
)
from llmnas.report import notebook
from llmnas.report.findings import Table
from llmnas.space import Architecture

if TYPE_CHECKING:
    import pandas


class Archive:
    """Every evaluation of one search, in order, each architecture once.

    A SQLite file in WAL mode with full synchronisation: when `append` returns, its rows survive
    kill -9 and a power cut; a batch is stored whole or not at all. One process writes. A file of the layout
    before this one is brought to this one when it is opened.

    Args:
        path: the file, made where there is none; ":memory:" keeps everything in memory.
        identity: plain values that say which search this is (space, strategy, seed and so on).
            An existing file must have been made with the same identity, objectives and constraints.

    Raises:
        UserError: the file is damaged, is no archive, belongs to another search, or cannot be opened.
        RunError: another process has locked it.
    """

    def __init__(
        self,
        path: str | Path,
        objectives: Objectives,
        constraints: Constraints | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = ":memory:" if str(path) == ":memory:" else str(user_path(path))
        self.objectives = check_objectives(objectives)
        self.constraints = check_constraints(constraints or {})
        identity = {
            **(identity or {}),
            "objectives": self.objectives,
            "constraints": {
                name: [end if math.isfinite(end) else None for end in ends] for name, ends in self.constraints.items()
            },
        }
        text = json.dumps(identity, default=plain)
        self._rows: list[Evaluation] = []
        self._all: tuple[Evaluation, ...] | None = ()
        self._own: list[Evaluation] = []
        self._asked_with: list[int | None] = []
        self._log: list[str] = []
        self._by_arch: dict[Architecture, Evaluation] = {}
        with named(self.path):
            if self.path != ":memory:":
                Path(self.path).parent.mkdir(parents=True, exist_ok=True)
                if Path(self.path).exists():
                    regular(Path(self.path))
            self._db = sqlite3.connect(self.path, timeout=layout.PATIENCE, isolation_level=None)
            try:
                self._open(text)
            except BaseException:
                self._db.close()
                raise

    @classmethod
    def load(cls, path: str | Path, evaluation: Mapping[str, Any] | None = None) -> Self:
        """Open an archive with its own objectives and constraints; another `evaluation` than it has is refused."""
        path = user_path(path)
        regular(path)
        with named(str(path)), contextlib.closing(sqlite3.connect(path, timeout=layout.PATIENCE)) as db:
            row = db.execute("SELECT identity FROM search").fetchone()
            if row is None:
                raise UserError(f"{path}: an archive without a search")
            stored = identity_of(row[0])
            if "objectives" not in stored:
                raise ValueError("a search without objectives")
        stored |= {} if evaluation is None else {"evaluation": evaluation}
        return cls(path, stored.pop("objectives"), stored.pop("constraints", {}), stored)

    def _open(self, identity: str) -> None:
        tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and not {"search", "evaluations"} <= tables:
            raise UserError(f"{self.path}: a SQLite file, but not an archive of evaluations")
        require_known_layout(self._db, self.path)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        (health,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if health != "ok":
            raise sqlite3.DatabaseError(health)
        with self._transaction():
            for statement in SCHEMA:
                self._db.execute(statement)
            # A search that ended before anything of it was stored (a mistake in its options, say) owns nothing.
            used = self._db.execute("SELECT 1 FROM evaluations UNION ALL SELECT 1 FROM log LIMIT 1").fetchone()
            if used is None:
                self._db.execute("INSERT OR REPLACE INTO search VALUES (0, ?)", (identity,))
            (stored,) = self._db.execute("SELECT identity FROM search").fetchone()
            self._require_same(identity_of(stored), json.loads(identity))
            if is_of_first_layout(self._db):
                add_marks(self._db, identity_of(stored))
            if self._db.execute("PRAGMA user_version").fetchone() != (LAYOUT,):
                self._db.execute(f"PRAGMA user_version = {LAYOUT}")
        if self.path != ":memory:":
            sync_dir(Path(self.path).parent)
        for evaluation, asked_with in rows_of(self._db):
            if evaluation.index != len(self):
                raise sqlite3.DatabaseError(f"evaluation {len(self)} is missing")
            require_objectives(evaluation, [*self.objectives, *self.constraints])
            self._keep(evaluation, asked_with)
        self._log = events_of(self._db)

    def _require_same(self, stored: dict[str, Any], asked: dict[str, Any]) -> None:
        old, new = flat(stored), flat(asked if "evaluation" in stored else {**asked, "evaluation": None})
        # how many were asked for at once belonged to the identity in the first layout
        changed = [key for key in {**old, **new} if key != "batch" and old.get(key) != new.get(key)]
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

    def _keep(self, evaluation: Evaluation, asked_with: int | None = None) -> None:
        self._rows.append(evaluation)
        self._all = None
        self._by_arch[evaluation.arch] = evaluation
        if not evaluation.proposed:
            self._own.append(evaluation)
            self._asked_with.append(asked_with)

    def append(
        self,
        archs: Sequence[Architecture],
        results: Sequence[Result],
        *,
        proposed: bool = False,
        log: Sequence[str] = (),
    ) -> list[Evaluation]:
        """Store what was measured of architectures that are not in the archive yet, in one transaction.

        A result whose objective or constrained metric is NaN or infinite is stored as a failed evaluation; of all
        others only metrics that are finite are stored.

        Args:
            proposed: no search asked for them; see `Evaluation`.
            log: events to store in the same transaction.

        Raises:
            UserError: another number of results than architectures, a metric that is no number, or a result
                without an objective or a constrained metric. Nothing is stored then.
            RunError: the rows cannot be stored (full disk, or another process writes to this archive).
        """
        if len(results) != len(archs):
            raise UserError(f"evaluate: returned {len(results)} results for {len(archs)} architectures")
        pairs = zip(archs, results, strict=True)
        new = [self._judge(arch, result, len(self) + i, proposed) for i, (arch, result) in enumerate(pairs)]
        rows = [
            (e.index, e.arch.to_json(), json.dumps(e.metrics), e.failure, int(e.proposed), e.dropped_after) for e in new
        ]
        with named(self.path):
            try:
                with self._transaction():
                    self._db.executemany(INSERT, rows)
                    self._db.executemany(INSERT_EVENT, enumerate(log, start=len(self._log)))
            except sqlite3.IntegrityError as error:
                raise RunError(
                    f"{self.path}: another process writes to this archive, or it is stored twice ({error})"
                ) from None
        self._log += log
        for evaluation in new:
            self._keep(evaluation)
        return new

    def _judge(self, arch: Architecture, result: Result, index: int, proposed: bool) -> Evaluation:
        metrics = numbers(result.metrics if isinstance(result, Failed) else result)
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        if isinstance(result, Failed):
            return Evaluation(arch, finite, result.reason, index, proposed, result.dropped_after)
        wanted = (*self.objectives, *self.constraints)
        missing = [name for name in wanted if name not in metrics]
        if missing:
            raise UserError(f"evaluate: returned no {missing[0]!r}; it returned {sorted(metrics)}")
        wrong = [f"{name} is {metrics[name]}" for name in dict.fromkeys(wanted) if name not in finite]
        return Evaluation(arch, finite, ", ".join(wrong) or None, index, proposed)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """All evaluations, in the order they were made."""
        if self._all is None:
            self._all = tuple(self._rows)
        return self._all

    def since(self, index: int) -> list[Evaluation]:
        """The evaluations from this one on; takes time for these alone, not for all."""
        return self._rows[index:]

    @property
    def asked(self) -> int:
        """How many evaluations the search itself asked for: those that are not `proposed`."""
        return len(self._own)

    def asked_from(self, position: int, count: int) -> list[Evaluation]:
        """At most `count` of the evaluations that the search itself asked for, from position `position` among them."""
        return self._own[position : position + count]

    @property
    def log(self) -> tuple[str, ...]:
        """The events of the search in order, as they were given to `append`; none in a file of an earlier layout."""
        return tuple(self._log)

    def asked_with(self, position: int) -> int | None:
        """How many architectures the strategy was asked for when it asked for evaluation `position` of the search.

        Known of files of the layout before this one, which had no log.
        """
        return self._asked_with[position] if position < len(self._asked_with) else None

    def get(self, arch: Architecture) -> Evaluation | None:
        """The evaluation of this architecture, None where it was not evaluated."""
        return self._by_arch.get(arch)

    def front(self) -> list[Evaluation]:
        """The Pareto front within the constraints; see `front`."""
        return front(self._rows, self.objectives, self.constraints)

    def why_empty(self) -> str:
        """Why nothing is on the front; see `why_empty`."""
        return why_empty(self._rows, self.constraints)

    def best(self, metric: str | None = None) -> Evaluation:
        """Of the front the best in a metric, by default the first objective.

        Raises:
            UserError: the front is empty (says why), or a member of it was not measured by this metric.
        """
        metric = metric or next(iter(self.objectives))
        members = self.front()
        if not members:
            raise UserError(f"the front is empty. {self.why_empty()}")
        if any(metric not in e.metrics for e in members):
            known = ", ".join(sorted(set.intersection(*(set(e.metrics) for e in members))))
            raise UserError(f"best: no metric {metric!r} of every network of the front; allowed: {known}")
        sign = -1.0 if self.objectives.get(metric) == "max" else 1.0
        return min(members, key=lambda e: sign * e.metrics[metric])

    def to_frame(self) -> pandas.DataFrame:
        """All evaluations as a pandas frame; see `llmnas.report.notebook.frame`."""
        return notebook.frame(self._rows, self.front())

    def plot(self) -> notebook.Picture:
        """All evaluations and the front as a picture; a notebook shows it, `.save(path)` writes it."""
        return notebook.plot(self._rows, self.front(), self.objectives)

    def _table(self) -> Table:
        failed = sum(e.failure is not None for e in self._rows)
        title = f"{len(self)} evaluations, {failed} failed" if failed else f"{len(self)} evaluations"
        members = self.front()
        note = self.why_empty() if self._rows and not members else ""
        return notebook.front_table(f"{title}; front of {len(members)}", members, self.objectives, note)

    def __repr__(self) -> str:
        goals = ", ".join(f"{name}: {way}" for name, way in self.objectives.items())
        return f"Archive({self.path}; {self._table().title}; {goals})"

    def _repr_html_(self) -> str:
        return notebook.html(self._table())

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

    Opens the file read-only, changes nothing and blocks nobody. Raises as `Archive` does.
    """
    path = user_path(path)
    regular(path)
    with named(str(path)):
        address = f"{path.resolve(strict=True).as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, timeout=layout.PATIENCE, uri=True)) as db:
            (stored,) = db.execute("SELECT identity FROM search").fetchone() or ("{}",)
            require_known_layout(db, path)
            found = [evaluation for evaluation, _ in rows_of(db, after)]
        search = identity_of(stored)
        objectives, constraints = search.get("objectives", {}), search.get("constraints", {})
        for evaluation in found:
            require_objectives(evaluation, [*objectives, *constraints])
    return objectives, constraints, found
