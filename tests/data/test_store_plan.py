"""Groups of the files of a store: their work grows with the number of files alone, and what is written is read back."""

import pytest

from llmnas.data import plan as plan_module
from llmnas.data.plan import Group, Plan, Settings, Source, changed_groups, grouped, read_plan, write_plan
from llmnas.errors import UserError
from llmnas.files.opening import MOST_TEXT

SETTINGS = Settings(text_field="text", bad_rows=0, duplicates="keep", validation=0.1, vocab_size=300, tokenizer=None)


def sources(count, size=10):
    return {f"{i:06}.txt": Source(name=f"{i:06}.txt", bytes=size, changed=1) for i in range(count)}


class Counted:
    """A file whose size is looked at so many times."""

    looks = 0

    def __init__(self, name):
        self.name = name

    @property
    def bytes(self):
        Counted.looks += 1
        return 10


def test_groups_hold_files_in_order_up_to_their_size():
    groups = grouped((), sources(7), 30)
    assert [[int(file.name[:6]) for file in group.files] for group in groups] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [group.number for group in groups] == [0, 1, 2]
    assert [len(group.files) for group in grouped((), sources(3, 50), 30)] == [1, 1, 1]


def test_each_file_is_looked_at_a_few_times_however_many_are_in_its_group(monkeypatch):
    monkeypatch.setattr(plan_module, "Group", lambda number, files: files)
    (group,) = grouped((), {f"{i}": Counted(f"{i}") for i in range(1000)}, 1 << 20)
    assert len(group) == 1000
    assert Counted.looks < 4000


def test_what_changed_is_counted():
    files = sources(5)
    groups = [Group(number=i, files=(file,)) for i, file in enumerate(files.values())]
    other = Group(number=1, files=(Source(name="000001.txt", bytes=3, changed=2),))
    assert changed_groups(groups[:4], groups[:4]) == (0, 0)
    assert changed_groups(groups[:4], [groups[0], other, groups[3], groups[4]]) == (1, 2)


def test_a_plan_of_more_than_other_files_may_have_is_read_back(tmp_path, monkeypatch):
    plan = Plan(source="text" * (MOST_TEXT // 4), settings=SETTINGS, groups=grouped((), sources(3)))
    write_plan(tmp_path / "plan.json", plan)
    assert (tmp_path / "plan.json").stat().st_size > MOST_TEXT
    assert read_plan(tmp_path / "plan.json") == plan
    monkeypatch.setattr(plan_module, "MOST_PLAN", 1000)
    with pytest.raises(UserError, match="text: the list of its 2,000 files has more than 1,000 bytes"):
        write_plan(tmp_path / "large.json", Plan(source="text", settings=SETTINGS, groups=grouped((), sources(2000))))
    assert not (tmp_path / "large.json").exists()
