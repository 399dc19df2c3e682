import contextlib
import itertools
import json
import math
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmnas.errors import RunError, UserError
from llmnas.pareto import Archive, Evaluation, check_constraints, dominates, front, hypervolume, violations
from llmnas.space import Architecture, LayerSpec

TWO = {"loss": "min", "speed": "max"}
ARCHS = [Architecture(size, (LayerSpec(1, 1, 8, 16),)) for size in range(8, 208, 8)]
RESULTS = [{"loss": float(i % 5), "speed": float(i % 7), "other": i / 3} for i in range(len(ARCHS))]


def evaluation(*values: float, names: str = "abc", failure: str | None = None) -> Evaluation:
    return Evaluation(ARCHS[0], dict(zip(names, values, strict=False)), failure)


small = st.integers(0, 4)
directions = st.sampled_from(["min", "max"])


@st.composite
def populations(draw):
    objectives = {name: draw(directions) for name in "abc"[: draw(st.integers(1, 3))]}
    rows = draw(st.lists(st.tuples(small, small, small, st.booleans()), max_size=12))
    return [evaluation(*map(float, row[:3]), failure="nan" if row[3] else None) for row in rows], objectives


def better(a: Evaluation, b: Evaluation, objectives: dict[str, str]) -> bool:
    """The definition, written out."""
    gains = [(b.metrics[n] - a.metrics[n]) * (1 if way == "min" else -1) for n, way in objectives.items()]
    return all(gain >= 0 for gain in gains) and any(gain > 0 for gain in gains)


@given(populations())
def test_dominates_is_the_definition(case):
    evaluations, objectives = case
    for a, b in itertools.product(evaluations, repeat=2):
        if a.failure is None and b.failure is None:
            assert dominates(a, b, objectives) == better(a, b, objectives)
        else:
            assert dominates(a, b, objectives) == (a.failure is None and b.failure is not None)


@given(populations(), st.none() | st.tuples(small, small).map(sorted))
def test_front_is_what_nothing_feasible_dominates(case, bounds):
    evaluations, objectives = case
    constraints = {"c": tuple(bounds)} if bounds else {}
    feasible = [
        e for e in evaluations if e.failure is None and (bounds is None or bounds[0] <= e.metrics["c"] <= bounds[1])
    ]
    expected = [e for e in feasible if not any(better(other, e, objectives) for other in feasible)]
    found = front(evaluations, objectives, constraints)
    assert [id(e) for e in found] == [id(e) for e in expected]  # equal points all stay, in their order


@given(populations(), st.tuples(small, small, small))
def test_hypervolume_is_the_number_of_dominated_unit_cells(case, corner):
    evaluations, objectives = case
    reference = {name: float(corner[i]) for i, name in enumerate(objectives)}
    cells = set()
    for e in evaluations:
        if e.failure is None:
            ends = [sorted((e.metrics[name], reference[name])) for name in objectives]
            signs = [(reference[n] - e.metrics[n]) * (1 if way == "min" else -1) > 0 for n, way in objectives.items()]
            if all(signs):
                cells |= set(itertools.product(*(range(int(low), int(high)) for low, high in ends)))
    assert hypervolume(evaluations, objectives, reference) == pytest.approx(len(cells))


unit = st.floats(0, 1)


@settings(max_examples=50)
@given(st.lists(st.tuples(unit, unit), min_size=1, max_size=20))
def test_hypervolume_in_two_dimensions_is_the_staircase(points):
    area, ceiling = 0.0, 1.0
    for x, y in sorted(points):
        if y < ceiling:
            area += (1.0 - x) * (ceiling - y)
            ceiling = y
    evaluations = [evaluation(x, y) for x, y in points]
    assert hypervolume(evaluations, {"a": "min", "b": "min"}, {"a": 1, "b": 1}) == pytest.approx(area, abs=1e-12)


@pytest.mark.parametrize("reference", [{}, {"a": 1.0}, {"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 1.0, "b": math.nan}])
def test_a_reference_that_does_not_fit_the_objectives_is_refused(reference):
    with pytest.raises(UserError, match=r"one finite number for each of \['a', 'b'\]"):
        hypervolume([evaluation(1, 2)], {"a": "min", "b": "max"}, reference)


def test_violations_are_relative_to_the_bound():
    bounds = {"a": 4.0, "b": (2.0, None), "c": (None, 0.0)}
    assert violations({"a": 4.0, "b": 2.0, "c": 0.0}, bounds) == [0.0, 0.0, 0.0]
    assert violations({"a": 6.0, "b": 1.0, "c": 3.0}, bounds) == [0.5, 0.5, 3.0]


def test_constraints_become_intervals():
    assert check_constraints({"a": 3, "b": [1, None], "c": (1, 1)}) == {
        "a": (-math.inf, 3),
        "b": (1, math.inf),
        "c": (1, 1),
    }


@pytest.mark.parametrize("bound", ["fast", None, (1, 2, 3), (2, 1), (None, None), math.nan, math.inf, {"max": 3}])
def test_malformed_constraints_are_refused(bound):
    with pytest.raises(UserError, match="constraints: latency"):
        check_constraints({"latency": bound})


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
    first, second, third, fourth = Archive.load(path).evaluations
    assert (first.failure, first.metrics) == ("loss is nan", {"speed": 1.0})
    assert second.failure == "loss is -inf"
    assert (third.failure, third.metrics) == ("speed is inf", {"loss": 5.0})
    assert Archive.load(path).front() == [fourth]


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
    with pytest.raises(RunError, match=r"cannot store evaluations .*full"):
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
    with pytest.raises(UserError, match=r"evaluations.sqlite: (no such|not a readable archive|a SQLite file, but not)"):
        Archive(path, TWO, {"other": 6.0}, {"seed": 3, "options": {"start": 4}})
    with pytest.raises(UserError, match=r"evaluations.sqlite: "):
        Archive.load(path)
    assert not path.is_file() or path.read_bytes() == before


def test_a_missing_file_cannot_be_loaded(path):
    with pytest.raises(UserError, match="no such file"):
        Archive.load(path)
    assert not path.exists()
