"""The archive on disk: what comes back, what is refused, files of other layouts, locks and full disks."""

import contextlib
import json
import math
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from llmnas.archive import Archive, layout, read_archive
from llmnas.errors import RunError, UserError
from llmnas.pareto import Failed, front
from llmnas.space import Architecture, LayerSpec

TWO = {"loss": "min", "speed": "max"}
ARCHS = [Architecture(size, (LayerSpec(1, 1, 8, 16),)) for size in range(8, 208, 8)]
NAMED = "is a folder, not a file|no such|not a readable archive|a SQLite file, but not|cannot be opened"
RESULTS = [{"loss": float(i % 5), "speed": float(i % 7), "other": i / 3} for i in range(len(ARCHS))]


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "deep" / "evaluations.sqlite"


def filled(path: Path | str) -> Archive:
    archive = Archive(path, TWO, {"other": (None, 6.0)}, {"seed": 3, "options": {"start": 4, "off": None}})
    archive.append(ARCHS[:10], RESULTS[:10])
    archive.append(ARCHS[10:], RESULTS[10:])
    return archive


def test_everything_comes_back_after_reopening(path):
    memory, disk = filled(":memory:"), filled(path)
    disk.close()
    for archive in (memory, disk, Archive.load(path)):
        assert len(archive) == len(ARCHS)
        assert [e.arch for e in archive.evaluations] == ARCHS
        assert [e.metrics for e in archive.evaluations] == RESULTS
        assert [e.index for e in archive.evaluations] == list(range(len(ARCHS)))
        assert archive.get(ARCHS[7]) == archive.evaluations[7]
        assert archive.get(Architecture(999, ARCHS[0].layers)) is None
        assert archive.front() == front(archive.evaluations, TWO, {"other": 6.0})
        assert archive.hypervolume({"loss": 9.0, "speed": -1.0}) == 9 * 6 + 8 * 1  # (0, 5) and (1, 6)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_metrics_that_are_not_finite_are_failures(path):
    archive = Archive(path, {"loss": "min"})
    archive.append(
        ARCHS[:4], [{"loss": x, "speed": y} for x, y in [(math.nan, 1), (-math.inf, 1), (5, math.inf), (7, 1)]]
    )
    archive.close()
    first, second, third, _ = Archive.load(path).evaluations
    assert (first.failure, first.metrics) == ("loss is nan", {"speed": 1.0})
    assert second.failure == "loss is -inf"
    assert (third.failure, third.metrics) == (None, {"loss": 5.0})  # nobody asked for speed
    assert Archive.load(path).front() == [third]
    limited = Archive(":memory:", {"loss": "min"}, {"speed": 3})
    assert limited.append(ARCHS[:1], [{"loss": 5, "speed": math.inf}])[0].failure == "speed is inf"


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (RESULTS[:1], "returned 1 results for 2 architectures"),
        ([{"loss": 1.0, "speed": 2.0}, {"loss": 1.0, "fast": 2.0}], r"no 'speed'; it returned \['fast', 'loss'\]"),
        ([{"loss": 1.0, "speed": 2.0}, {"loss": 1.0, "speed": "fast"}], "from metric to number"),
    ],
)
def test_a_wrong_batch_is_refused_whole(path, results, message):
    archive = Archive(path, TWO)
    with pytest.raises(UserError, match=message):
        archive.append(ARCHS[:2], results)
    assert len(archive) == len(Archive.load(path)) == 0


def test_a_batch_that_cannot_be_stored_leaves_nothing(path):
    archive = filled(path)
    with pytest.raises(RunError, match=r"evaluations.sqlite: .* stored twice"):
        archive.append([Architecture(999, ARCHS[0].layers), ARCHS[3]], RESULTS[:2])
    assert archive.evaluations == Archive.load(path).evaluations
    assert len(archive) == len(ARCHS)


def test_a_full_disk_is_a_failed_run(path):
    archive = filled(path)
    archive._db.execute("PRAGMA max_page_count = 1")  # what SQLite does when it can grow no further
    wide = {f"metric {i}": 0.5 for i in range(5000)}
    with pytest.raises(RunError, match=r"evaluations.sqlite: cannot be written .*full"):
        archive.append([Architecture(999, ARCHS[0].layers)], [RESULTS[0] | wide])
    assert archive.evaluations == Archive.load(path).evaluations


def test_a_second_writer_is_stopped_without_damage(path):
    ours, theirs = Archive(path, TWO), Archive(path, TWO)
    ours.append(ARCHS[:3], RESULTS[:3])
    with pytest.raises(RunError, match="another process writes"):
        theirs.append(ARCHS[5:6], RESULTS[5:6])
    assert Archive.load(path).evaluations == ours.evaluations


def test_another_search_is_refused_with_every_difference(path):
    filled(path).close()
    asked = {"seed": 4, "options": {"start": 4}, "budget": {"max_params": 9}}
    with pytest.raises(UserError) as error:
        Archive(path, TWO, {"other": 6.0}, asked)
    assert "(seed: 3 -> 4, budget.max_params: None -> 9)" in str(error.value)
    assert len(Archive(path, TWO, {"other": 6.0}, {"seed": 3, "options": {"start": 4}})) == len(ARCHS)


def test_an_archive_without_evaluations_belongs_to_nobody(path):
    Archive(path, TWO, identity={"seed": 1}).close()
    Archive(path, {"loss": "min"}, identity={"seed": 2}).close()
    assert Archive.load(path).objectives == {"loss": "min"}


def damage_header(path: Path) -> None:
    path.write_bytes(b"not a database, whatever its name" * 200)


def damage_pages(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\x5a" * (len(content) - 4096))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_a_row(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db, db:  # closed now, not when it is collected
        db.execute("DELETE FROM evaluations WHERE idx = 4")


def spoil_an_architecture(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db, db:  # closed now, not when it is collected
        db.execute("UPDATE evaluations SET arch = ? WHERE idx = 4", (json.dumps([1]),))


def other_database(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as db, db:  # closed now, not when it is collected
        db.execute("CREATE TABLE runs (name TEXT)")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [damage_header, damage_pages, truncate, lose_a_row, spoil_an_architecture, other_database, folder],
    ids=lambda f: f.__name__,
)
def test_a_damaged_file_is_named(path, damage):
    filled(path).close()
    damage(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(UserError, match=rf"evaluations.sqlite: ({NAMED})"):
        Archive(path, TWO, {"other": 6.0}, {"seed": 3, "options": {"start": 4}})
    with pytest.raises(UserError, match=r"evaluations.sqlite: "):
        Archive.load(path)
    assert not path.is_file() or path.read_bytes() == before


def test_a_missing_file_cannot_be_loaded(path):
    with pytest.raises(UserError, match="no such file"):
        Archive.load(path)
    assert not path.exists()


@pytest.mark.parametrize("name", ["proposed", "dropped_after_windows", "batch", "failure", "idx", "arch", "metrics"])
def test_a_metric_may_have_any_name(path, name):
    archive = Archive(path, {name: "min"}, {name: 30})
    archive.append(ARCHS, [{name: float(i)} for i in range(len(ARCHS))])
    archive.close()
    for found in (archive, Archive.load(path)):
        assert [e.metrics for e in found.evaluations] == [{name: float(i)} for i in range(len(ARCHS))]
        assert found.asked == len(ARCHS)
        assert not any(e.proposed or e.failure for e in found.evaluations)
        assert [e.metrics[name] for e in found.front()] == [0.0]


def test_marks_come_back_and_what_was_proposed_is_not_of_the_search(path):
    archive = Archive(path, {"loss": "min"})
    archive.append(ARCHS[:2], [{"loss": 1}, Failed("dropped after 8 windows", {"params": 3}, 8)], log=["a"])
    archive.append(ARCHS[2:3], [{"loss": 2}], proposed=True)
    archive.append(ARCHS[3:5], [{"loss": 3}, Failed("no memory")], log=["b", "c"])
    archive.close()
    for found in (archive, Archive.load(path)):
        assert [e.proposed for e in found.evaluations] == [False, False, True, False, False]
        assert [e.dropped_after for e in found.evaluations] == [None, 8, None, None, None]
        assert [e.failure for e in found.evaluations] == [None, "dropped after 8 windows", None, None, "no memory"]
        assert found.evaluations[1].metrics == {"params": 3.0}
        assert found.asked == 4
        assert found.asked_from(1, 2) == [found.evaluations[1], found.evaluations[3]]
        assert found.log == ("a", "b", "c")
        assert [found.asked_with(i) for i in range(5)] == [None] * 5
        assert found.since(3) == list(found.evaluations[3:])
    assert read_archive(path)[2] == list(archive.evaluations)


@pytest.mark.parametrize(
    "number",
    [np.float32(1.5), np.float64(1.5), np.int64(3), np.array(1.5), 3, True],
    ids=lambda n: f"{type(n).__name__}",
)
def test_a_metric_may_be_any_kind_of_number(path, number):
    archive = Archive(path, {"loss": "min"}, {"loss": np.float32(30)}, {"sizes": np.arange(3), "n": np.int32(3)})
    archive.append(ARCHS[:1], [{"loss": number}])
    assert Archive.load(path).evaluations[0].metrics == {"loss": float(number)}
    assert archive.hypervolume({"loss": np.float64(9)}) == 9 - float(number)


@pytest.mark.parametrize("wrong", ["1.5", b"1", None, [1.0, 2.0], 1j, {}])
def test_what_is_no_number_is_refused(wrong):
    with pytest.raises(UserError, match="must return a mapping from metric to number"):
        Archive(":memory:", {"loss": "min"}).append(ARCHS[:1], [{"loss": wrong}])


def test_an_identity_that_json_cannot_say_is_one_line():
    with pytest.raises(UserError, match=r"evaluation: .* is no plain value"):
        Archive(":memory:", {"loss": "min"}, identity={"evaluation": {"path": Path("x")}})


def of_first_layout(path: Path) -> None:
    """As llmnas wrote it before marks had columns of their own."""
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE search (id INTEGER PRIMARY KEY CHECK (id = 0), identity TEXT NOT NULL)")
        db.execute(
            "CREATE TABLE evaluations (idx INTEGER PRIMARY KEY, arch TEXT NOT NULL UNIQUE, metrics TEXT NOT NULL,"
            " failure TEXT)"
        )
        identity = {"seed": 3, "batch": 4, "objectives": {"loss": "min"}, "constraints": {}}
        db.execute("INSERT INTO search VALUES (0, ?)", (json.dumps(identity),))
        rows = [
            ({"loss": 1.0}, None),
            ({"params": 3.0, "dropped_after_windows": 8.0}, "dropped after 8 windows"),
            ({"loss": 2.0, "proposed": 1.0}, None),
        ]
        for i, (metrics, failure) in enumerate(rows):
            values = (i, ARCHS[i].to_json(), json.dumps(metrics), failure)
            db.execute("INSERT INTO evaluations VALUES (?, ?, ?, ?)", values)


@pytest.mark.parametrize("door", ["open", "load", "read"])
def test_an_archive_of_the_first_layout_is_read_and_goes_on(path, door):
    of_first_layout(path)
    before = path.read_bytes()
    if door == "read":
        found = read_archive(path)[2]
        assert path.read_bytes() == before
    else:
        archive = Archive.load(path) if door == "load" else Archive(path, {"loss": "min"}, identity={"seed": 3})
        found = list(archive.evaluations)
        archive.append(ARCHS[3:4], [{"loss": 4.0}])
        assert [archive.asked_with(i) for i in range(3)] == [4, 4, None]
        archive.close()
        again = Archive.load(path)
        assert again.evaluations == archive.evaluations
        assert [again.asked_with(i) for i in range(3)] == [4, 4, None]
    assert [e.metrics for e in found] == [{"loss": 1.0}, {"params": 3.0}, {"loss": 2.0}]
    assert [(e.proposed, e.dropped_after) for e in found] == [(False, None), (False, 8), (True, None)]


def test_another_search_does_not_change_a_file_of_the_first_layout(path):
    of_first_layout(path)
    with pytest.raises(UserError, match="seed: 3 -> 4"):
        Archive(path, {"loss": "min"}, identity={"seed": 4})
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert len(list(db.execute("PRAGMA table_info(evaluations)"))) == 4


def test_a_newer_layout_is_refused_by_name(path):
    filled(path).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 9")
    for door in (Archive.load, read_archive):
        with pytest.raises(UserError, match=r"newer version of llmnas \(layout 9\)"):
            door(path)


@pytest.mark.parametrize("door", ["open", "load", "append", "read"])
def test_a_locked_archive_is_called_locked_not_damaged(path, door, monkeypatch):
    monkeypatch.setattr(layout, "PATIENCE", 0.05)
    archive = filled(path)
    if door != "append":
        archive.close()
    doors = {
        "open": lambda: Archive(path, TWO, {"other": 6.0}, {"seed": 3, "options": {"start": 4}}),
        "load": lambda: Archive.load(path),
        "append": lambda: archive.append([Architecture(999, ARCHS[0].layers)], RESULTS[:1]),
        "read": lambda: read_archive(path),
    }
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        if door == "read":  # beside a writer in WAL mode readers go on
            other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RunError, match=r"evaluations.sqlite: locked by another process .*try again") as error:
            doors[door]()
        assert "move it away" not in str(error.value)
        other.execute("ROLLBACK")
    doors[door]()


def test_a_file_that_may_not_be_written_is_not_called_damaged(path):
    filled(path).close()
    archive = Archive.load(path)
    archive._db.execute("PRAGMA query_only = 1")  # the error of a file that is read-only; root may write any
    with pytest.raises(UserError, match=r"cannot be opened .*readonly.*choose a path"):
        archive.append([Architecture(999, ARCHS[0].layers)], RESULTS[:1])


def test_a_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be opened .*choose a path"):
        Archive(tmp_path / "file" / "evaluations.sqlite", TWO)


def test_what_is_appended_after_closing_is_one_line(path):
    archive = filled(path)
    archive.close()
    with pytest.raises(RunError, match=r"evaluations.sqlite: .*closed"):
        archive.append([Architecture(999, ARCHS[0].layers)], RESULTS[:1])
