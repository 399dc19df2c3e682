"""Batches: of any size, of another size after a resume, and what a turn of the loop costs."""

import itertools
import json
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from statistics import median

import pytest
from toy_problem import BUDGET, EACH, LIGHT, SPACE, measure

from llmnas.archive import Archive
from llmnas.search import search


class Batches:
    """The toy evaluator, remembering its batches."""

    def __init__(self):
        self.sizes = []

    def __call__(self, archs):
        self.sizes.append(len(archs))
        return measure(archs)


@pytest.mark.parametrize("name", EACH)
def test_a_resumed_search_may_use_more_workers_and_what_is_stored_stays_exact(name, tmp_path):
    def run(path, evaluations, batch):
        evaluate = Batches()
        archive = search(SPACE, evaluate, name, budget=BUDGET, evaluations=evaluations, archive_path=path, batch=batch,
                         options=LIGHT.get(name, {}))  # fmt: skip
        archive.close()
        return archive.evaluations, evaluate.sizes

    path, other = tmp_path / "one.sqlite", tmp_path / "other.sqlite"
    first, _ = run(path, 21, 8)  # ends within a batch
    second, sizes = run(path, 60, 16)
    assert second[:21] == first
    assert sizes[0] == (4 if name == "mip" else 3)  # what was left of the batch that the first start ended in
    assert max(sizes) == 16
    third, sizes = run(path, 60, 5)
    assert third == second
    assert sizes == []
    for evaluations, batch in ((21, 8), (37, 16), (60, 16)):  # the same batches, stopped once more
        stopped, _ = run(other, evaluations, batch)
    assert stopped == second


def test_the_batch_of_an_archive_of_the_first_layout_is_that_of_its_identity(tmp_path):
    path = tmp_path / "evaluations.sqlite"
    search(SPACE, measure, "nsga2", evaluations=21, archive_path=path, batch=8).close()
    with closing(sqlite3.connect(path)) as db, db:
        identity = json.loads(db.execute("SELECT identity FROM search").fetchone()[0])
        db.execute("UPDATE search SET identity = ?", (json.dumps({**identity, "batch": 8}),))
        for name in ("proposed", "dropped_after_windows", "batch"):
            db.execute(f"ALTER TABLE evaluations DROP COLUMN {name}")
        db.execute("PRAGMA user_version = 0")
    for batch in (8, 16):
        archive = search(SPACE, measure, "nsga2", evaluations=21 + batch, archive_path=path, batch=batch)
        archive.close()
    assert len(archive) == 37
    straight = search(SPACE, measure, "nsga2", evaluations=29, batch=8)
    assert archive.evaluations[:29] == straight.evaluations


@pytest.mark.parametrize("names", [("proposed",), ("dropped_after_windows",), ("proposed", "dropped_after_windows")])
def test_a_metric_named_as_a_mark_changes_nothing(names):
    """24 were asked for, and 3,376 evaluated."""

    def marked(archs):
        return [{**row, **dict.fromkeys(names, 8.0)} for row in measure(archs)]

    archive = search(SPACE, marked, "nsga2", evaluations=24)
    plain = search(SPACE, measure, "nsga2", evaluations=24)
    assert [e.arch for e in archive.evaluations] == [e.arch for e in plain.evaluations]
    assert not any(e.failure for e in archive.evaluations)
    assert [e.metrics["val_loss"] for e in archive.front()] == [e.metrics["val_loss"] for e in plain.front()]


class Lines:
    """Counts the lines that are run in files of these names, under `sys.settrace`."""

    def __init__(self, *names):
        self._names, self.count = names, 0

    def __call__(self, frame, event, _argument):
        return self._line if frame.f_code.co_filename.endswith(self._names) else None

    def _line(self, _frame, event, _argument):
        self.count += event == "line"
        return self._line


def test_a_turn_of_the_loop_costs_the_same_however_much_is_stored(tmp_path, monkeypatch):
    """In lines run, SQL statements and copies of the archive; random search, which itself looks at nothing."""
    monkeypatch.setattr(Archive, "evaluations", property(lambda self: pytest.fail("a copy of the whole archive")))
    lines, statements, at = (
        Lines("search/session.py", "search/dialogue.py", "archive/store.py", "search/evaluating.py"),
        Counter(),
        [],
    )

    def note(archive):
        if not at:
            archive._db.set_trace_callback(lambda _: statements.update(["sql"]))
        at.append((lines.count, statements["sql"]))

    before = sys.gettrace()
    sys.settrace(lines)
    try:
        search(SPACE, measure, "random", evaluations=1600, archive_path=tmp_path / "a.sqlite", on_progress=note)
    finally:
        sys.settrace(before)
    turns = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(at[1:])]
    assert len(turns) > 190
    assert median(t[0] for t in turns[-50:]) <= 1.1 * median(t[0] for t in turns[:50])
    assert max(t[0] for t in turns[-50:]) <= 1.5 * median(t[0] for t in turns[:50])
    assert {t[1] for t in turns} == {turns[0][1]}
    assert turns[0][1] <= 12  # begin, commit, one insert a row, what was asked, what was told
