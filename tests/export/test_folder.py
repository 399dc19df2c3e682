"""A folder that is replaced is the old one or the new one, whatever happens in between."""

from pathlib import Path

import pytest

from llmnas.errors import RunError
from llmnas.export.folder import staged
from llmnas.files import ABOUT_FILE


@pytest.fixture
def export(tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / ABOUT_FILE).write_text("{}")
    (folder / "weights").write_text("old")
    return folder


def replace_it(folder):
    with staged(folder, force=True) as made:
        (made / ABOUT_FILE).write_text("{}")
        (made / "weights").write_text("new")


def test_the_new_one_takes_its_place(export):
    replace_it(export)
    assert (export / "weights").read_text() == "new"
    assert list(export.parent.iterdir()) == [export]


@pytest.mark.parametrize(
    ("stop", "seen"), [(KeyboardInterrupt, KeyboardInterrupt), (SystemExit, SystemExit), (OSError, RunError)]
)
def test_stopped_between_the_two_renames_the_old_one_comes_back(export, monkeypatch, stop, seen):
    rename = Path.rename

    def stopped(path, target):
        if path.name == "checkpoint":
            raise stop
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(seen):
        replace_it(export)
    assert (export / "weights").read_text() == "old"
    assert list(export.parent.iterdir()) == [export]


def make_beside_another(folder):
    with staged(folder, force=False) as made:
        (made / "weights").write_text("ours")
        folder.mkdir()
        (folder / "weights").write_text("another's")


def test_without_force_a_folder_that_came_meanwhile_stays(tmp_path):
    folder = tmp_path / "export"
    with pytest.raises(RunError, match="cannot write the export"):
        make_beside_another(folder)
    assert (folder / "weights").read_text() == "another's"
