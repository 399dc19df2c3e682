"""The harness notices each kind of fault: a check that cannot fail would find nothing."""

import os
import time
from pathlib import Path

import pytest
from damage import copied, damaged
from forked import CANARY, Counts, forked, verb

from llmnas.errors import UserError
from llmnas.process import complain


def complaint():
    complain(UserError("x.yaml: a: must be a number"))
    raise SystemExit(2)


def complaint_of_two_lines():
    complain("one")
    complain("two")
    raise SystemExit(1)


@pytest.mark.parametrize(
    ("call", "verdict"),
    [
        (lambda: print("fine"), "done"),
        (complaint, "noticed"),
        (complaint_of_two_lines, "traceback"),
        (lambda: 1 / 0, "traceback"),
        (os.abort, "traceback"),
        (lambda: os._exit(2), "traceback"),
        (lambda: time.sleep(60), "hang"),
        (lambda: Path(CANARY).touch(), "code"),
        (lambda: bytearray(1 << 45), "traceback"),
    ],
    ids=["well", "a line", "two lines", "error", "abort", "no line", "hang", "code", "memory"],
)
def test_every_way_to_end_has_its_name(tmp_path, call, verdict):
    ended = forked(call, tmp_path, seconds=1 if verdict == "hang" else 60)
    assert ended.verdict == verdict, ended
    assert list(tmp_path.iterdir()) == []


def test_a_verb_runs_as_from_the_command_line(tmp_path):
    ended = forked(verb("plan", "absent.yaml"), tmp_path)
    assert (ended.verdict, ended.code) == ("noticed", 2)
    assert ended.lines == ["llmnas: absent.yaml: no such file"]


def test_counts_keep_what_is_bad():
    counts = Counts("kind")
    for verdict in ("done", "noticed", "silent", "hang"):
        counts.add(f"case {verdict}", verdict)
    assert str(counts) == "kind: 4 cases: 1 silent, 0 traceback, 1 hang, 0 code; 1 done, 1 noticed"
    assert [line.split(":")[0] for line in counts.bad] == ["silent", "hang"]


def test_damages_are_damages_and_the_same_each_time(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(bytes(range(100)))
    for how, length in (("empty", 0), ("half", 50), ("bit", 100)):
        found = []
        for _ in range(2):
            copied(tmp_path / "a", tmp_path / "b")
            assert damaged(tmp_path / "b" / "file", how)
            found.append((tmp_path / "b" / "file").read_bytes())
        assert found[0] == found[1] != bytes(range(100))
        assert len(found[0]) == length
    assert not damaged(tmp_path / "b" / "file", "half") or (tmp_path / "b" / "file").stat().st_size == 50
