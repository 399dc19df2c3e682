"""Reading an archive beside the search that writes it."""

import sqlite3

import pytest

from llmnas.archive import Archive, read_archive
from llmnas.errors import UserError
from llmnas.space import Architecture, LayerSpec

OBJECTIVES = {"val_loss": "min", "params": "max"}
ARCHS = [Architecture(8 * (i + 1), (LayerSpec(1, 1, 2, 4), None)) for i in range(5)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "with space ?#%.sqlite"


def result(i):
    return {"val_loss": float("nan") if i == 2 else 1.0 * i, "params": 10.0}


def test_sees_what_the_writer_stored_and_leaves_it_free_to_go_on(path):
    writer = Archive(path, OBJECTIVES, {"params": (5.0, 20.0)}, {"seed": 1})
    writer.append(ARCHS[:3], [result(i) for i in range(3)])
    objectives, constraints, found = read_archive(path)
    assert (objectives, constraints) == (OBJECTIVES, {"params": [5.0, 20.0]})
    assert found == list(writer.evaluations)
    assert found[2].failure is not None
    writer.append(ARCHS[3:], [result(3), result(4)])
    assert read_archive(path, 2)[2] == list(writer.evaluations[2:])
    assert read_archive(path, 5)[2] == []
    writer.close()
    assert read_archive(path)[2] == list(writer.evaluations)


def test_changes_nothing(path):
    Archive(path, OBJECTIVES).close()
    before = path.read_bytes()
    assert read_archive(path)[2] == []
    assert path.read_bytes() == before


def test_a_file_that_is_no_archive_is_a_users_error(path):
    with pytest.raises(UserError, match="no such file"):
        read_archive(path)
    assert not path.exists()  # and none was made
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="not a readable archive"):
        read_archive(path)
    path.unlink()
    sqlite3.connect(path).execute("CREATE TABLE other (x)").connection.close()
    with pytest.raises(UserError, match="not a readable archive"):
        read_archive(path)
