"""Token stores: the same tokens however the work is divided, nothing lost on kill -9, nothing read again."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tiny

from llmnas.data import EOS_ID, load_tokenizer
from llmnas.data import shards as shards_module
from llmnas.data.duplicates import mapped, mark_repeated, normal_digest
from llmnas.data.shards import side_of
from llmnas.data.store import Store
from llmnas.errors import RunError, UserError
from llmnas.files import sha256
from llmnas.pipeline import store_common
from llmnas.pipeline.make_store import make_store
from llmnas.pipeline.store_common import Request

VOCAB = 300
HELD_OUT = 0.2
WORDS = " ".join(file.read_text() for file in sorted(tiny.SPEECHES.glob("*.txt"))[:8]).split()
PARTS = [" ".join(WORDS[i * 40 : i * 40 + 40]) for i in range(240)]


def write_lines(path, parts):
    path.write_text("".join(json.dumps({"text": part}) + "\n" for part in parts))


@pytest.fixture
def source(tmp_path):
    """Twelve files of twenty parts of real speeches."""
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(12):
        write_lines(folder / f"{number:02}.jsonl", PARTS[number * 20 : number * 20 + 20])
    return folder


def made(source, out, **options):
    options = {"vocab_size": VOCAB, "validation": HELD_OUT, "workers": 1, "group_bytes": 12_000, **options}
    return make_store(Request(str(source), out, **options), lambda *_: None)


def texts_of(store, side):
    """The documents of a side, decoded again."""
    tokens = store.tokens(side).tokens
    ids = np.asarray(tokens[np.arange(len(tokens))])
    tokenizer, ends = load_tokenizer(store.path / "tokenizer.json"), np.flatnonzero(ids == EOS_ID)
    return [tokenizer.decode(part[:-1]) for part in np.split(ids, ends + 1)[:-1]]


def files(folder):
    return {path.relative_to(folder).as_posix(): sha256(path) for path in folder.rglob("*") if path.is_file()}


def side(text):
    return side_of(normal_digest(text), HELD_OUT)


def test_a_store_holds_every_document_once_on_the_side_of_its_digest(source, tmp_path):
    store = made(source, tmp_path / "store").store
    for which in ("train", "validation"):
        assert texts_of(store, which) == [part for part in PARTS if side(part) == which]
        assert store.tokens(which).info.text_bytes == sum(len(p.encode()) for p in PARTS if side(p) == which)
    assert 20 < store.info.documents["validation"] < 80
    assert len(store.tokens("train").info.shards) == 6
    store.tokens("train").verify()


def test_workers_and_tasks_make_the_same_files(source, tmp_path):
    alone = files(made(source, tmp_path / "alone").store.path)
    assert files(made(source, tmp_path / "two", workers=2).store.path) == alone
    out = tmp_path / "tasks"
    first = [made(source, out, task=(task, 3)) for task in range(3)]
    assert [outcome.store for outcome in first[:2]] == [None, None]
    assert "4 of 6 shards of other tasks are not yet" in first[0].lines[-1]
    second = [made(source, out, task=(task, 3)) for task in range(3)]
    assert [outcome.store is None for outcome in second[:2]] == [True, False]  # the last one of before was whole
    assert files(out) == alone


def test_what_another_task_has_just_settled_is_taken(source, tmp_path, monkeypatch):
    alone = files(made(source, tmp_path / "alone").store.path)
    out, real, first = tmp_path / "tasks", store_common.locked, [True]
    made(source, out, task=(0, 2))

    def after_the_other(folder):
        """The lock, which task 1 gets when task 0 has done all its work meanwhile."""
        if first and folder.name == "common":
            first.clear()
            assert "has encoded its share; 3 of 6" in made(source, out, task=(0, 2)).lines[-1]
            marks.update({path.name: path.stat().st_ino for path in out.glob("work/*.repeated")})
        return real(folder)

    marks = {}
    monkeypatch.setattr(store_common, "locked", after_the_other)
    assert made(source, out, task=(1, 2)).store is not None
    assert files(out) == alone
    assert {path.name: path.stat().st_ino for path in out.glob("work/*.repeated")} == marks


def test_marks_are_not_changed_under_who_reads_them(tmp_path):
    digests, marks = tmp_path / "a.digests", tmp_path / "a.repeated"
    np.array([1, 2, 1], "<u8").tofile(digests)
    assert mark_repeated([digests], [marks]) == 1
    read = mapped(marks, np.uint8)
    np.array([2, 2, 1], "<u8").tofile(digests)
    mark_repeated([digests], [marks])
    assert read.tolist() == [0, 0, 1]
    assert mapped(marks, np.uint8).tolist() == [0, 1, 0]
    assert {path.name for path in tmp_path.iterdir()} == {"a.digests", "a.repeated"}


def test_new_text_after_an_end_between_the_tokenizer_and_what_is_said_of_it(source, tmp_path, monkeypatch):
    out = tmp_path / "store"
    with monkeypatch.context() as patched:
        patched.setattr(store_common, "write_json", ends)
        with pytest.raises(KeyboardInterrupt):
            made(source, out)
    assert (out / "tokenizer.json").exists()
    write_lines(source / "12.jsonl", ["new text"])
    for task in (0, 1, 0):
        outcome = made(source, out, task=(task, 2))
    assert sum(outcome.store.info.documents.values()) == len(PARTS) + 1


def test_text_as_before_after_an_end_among_the_marks_of_other_text(source, tmp_path, monkeypatch):
    out, first = tmp_path / "store", source / "00.jsonl"
    made(source, out)
    before, text = first.stat(), first.read_text()
    write_lines(first, PARTS[100:120])  # now those of 05.jsonl are repeated
    with monkeypatch.context() as patched:
        patched.setattr(store_common, "mark_repeated", lambda *paths: ends(mark_repeated(*paths)))
        with pytest.raises(KeyboardInterrupt):
            made(source, out)
    first.write_text(text)
    os.utime(first, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sorted(texts_of(made(source, out).store, "train")) == sorted(p for p in PARTS if side(p) == "train")


def ends(*_):
    raise KeyboardInterrupt


def test_equal_texts_are_left_out_and_never_on_two_sides(source, tmp_path):
    held_out = next(part for part in PARTS if side(part) == "validation")
    changed = [held_out + " ", f"\n{held_out.upper()}", held_out.replace(" ", "  "), held_out]
    write_lines(source / "99.jsonl", [*changed, "  ", "", "new text that nobody wrote before"])
    found = made(source, tmp_path / "a").store
    assert found.info.repeated == 4
    assert found.info.blank == 2
    assert sum(found.info.documents.values()) == len(PARTS) + 1
    exact = made(source, tmp_path / "b", duplicates="exact").store
    assert exact.info.repeated == 1
    assert texts_of(exact, "validation")[-3:] == changed[:3]
    keep = made(source, tmp_path / "c", duplicates="keep").store
    assert keep.info.repeated == 0
    for store in (found, exact, keep):
        normal = [{normal_digest(text) for text in texts_of(store, which)} for which in ("train", "validation")]
        assert not normal[0] & normal[1]


def test_new_text_makes_new_shards_and_leaves_the_others(source, tmp_path, monkeypatch):
    out = tmp_path / "store"
    made(source, out)
    before = files(out)
    write_lines(source / "12.jsonl", [*PARTS[:3], "something new", *(f"number {i}" for i in range(90))])
    read = []
    monkeypatch.setattr(shards_module, "read_file", lambda name, *rest: (read.append(name), read_file(name, *rest))[1])
    outcome = made(source, out)
    assert set(read) == {"12.jsonl"}
    assert "1 new shard(s) for new text; of 0 a file changed or is gone" in outcome.lines[0]
    after = files(out)
    shards = [name for name in before if name.endswith((".bin", ".digests"))]
    assert all(after[name] == before[name] for name in shards)
    assert sum(outcome.store.info.documents.values()) == len(PARTS) + 91
    assert outcome.store.info.repeated == 3
    read.clear()
    assert files(made(source, out).store.path) == after
    assert not read


def test_a_changed_file_makes_its_shard_again_and_a_deleted_one_goes(source, tmp_path):
    out = tmp_path / "store"
    made(source, out)
    write_lines(source / "05.jsonl", ["changed", *PARTS[101:120]])
    (source / "11.jsonl").unlink()
    outcome = made(source, out)
    assert "of 2 a file changed or is gone, they are made again; 4 are read no more" in outcome.lines[0]
    found = sorted(texts_of(outcome.store, "train") + texts_of(outcome.store, "validation"))
    assert found == sorted([*PARTS[:100], "changed", *PARTS[101:220]])
    fresh = made(source, tmp_path / "fresh", tokenizer=out).store
    assert sorted(path.stat().st_size for path in fresh.path.glob("*.bin")) == sorted(
        path.stat().st_size for path in out.glob("*.bin")
    )
    assert len(list(out.glob("train-*.bin"))) == 6


KILLED = """
import sys, time
from pathlib import Path
from llmnas.data import shards
from llmnas.pipeline import store_common
from llmnas.pipeline.make_store import make_store
from llmnas.pipeline.store_common import Request

if __name__ == "__main__":
    def tell(stage, done, total, note):
        print(stage, note, flush=True)
        if stage == sys.argv[3] and note.startswith(sys.argv[4]):
            time.sleep(600)
    options = {"vocab_size": 300, "validation": 0.2, "workers": 1, "group_bytes": 12_000}
    make_store(Request(sys.argv[1], Path(sys.argv[2]), **options), tell)
"""


@pytest.mark.parametrize(("stage", "note"), [("scan", "3 of"), ("tokenizer", ""), ("encode", "4 of")])
def test_after_a_kill_only_what_was_not_finished_is_done(source, tmp_path, monkeypatch, stage, note):
    expected = files(made(source, tmp_path / "whole").store.path)
    out = tmp_path / "store"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(source), str(out), stage, note], stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith(stage) and note in line:
            break
    process.kill()
    process.wait()
    done = {"scan": len(list(out.glob("work/*.digests"))), "encode": len(list(out.glob("work/*.shard.json")))}
    read = []
    for kind in ("scan", "encode"):
        monkeypatch.setattr(f"llmnas.pipeline.make_store.{kind}", noted(getattr(shards_module, kind), kind, read))
    assert files(made(source, out).store.path) == expected
    left = {kind: read.count(kind) for kind in ("scan", "encode")}
    assert left == {kind: 6 - done[kind] for kind in left}
    assert done[stage] == int(note[0]) if note else done["scan"] == 6


def noted(function, kind, read):
    def call(piece):
        read.append(kind)
        return function(piece)

    return call


def read_file(*arguments):
    from llmnas.data.reading import read_file as real

    return real(*arguments)


def test_a_killed_worker_ends_the_command_in_one_line(source, tmp_path):
    code = (
        KILLED.replace('"workers": 1', '"workers": 2')
        .replace("time.sleep(600)", "os.kill(child(), 9)")
        .replace(
            "import sys, time",
            "import multiprocessing, os, sys\nchild = lambda: multiprocessing.active_children()[0].pid",
        )
        .replace("    make_store(", "    from llmnas.errors import RunError\n    try:\n      make_store(")
        .rstrip()
    )
    code += "\n    except RunError as error:\n        print('RunError', error)\n"
    script = tmp_path / "killed.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script), str(source), str(tmp_path / "store"), "scan", "1 of"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert "RunError a worker process ended before its work was done (SIGKILL)" in done.stdout, done.stderr
    made(source, tmp_path / "store")


def test_what_cannot_be_made_is_one_line_that_names_the_place(source, tmp_path):
    out = tmp_path / "store"
    with (source / "07.jsonl").open("a") as stream:
        stream.write('{"text": 3}\n[]\n')
    with pytest.raises(UserError, match=r"07\.jsonl: line 21: must be a mapping"):
        made(source, out)
    with pytest.raises(UserError, match=r"bad_rows: 0 -> 2; choose another --out"):
        made(source, out, bad_rows=2)
    store = made(source, tmp_path / "other", bad_rows=2).store
    assert store.info.bad == 2
    assert [line.rpartition(": must")[0].rpartition("/")[2] for line in store.info.listed] == [
        "07.jsonl: line 21", "07.jsonl: line 22",
    ]  # fmt: skip
    for inside in (source, source / "store"):
        with pytest.raises(UserError, match=rf"--out {inside}: lies in SOURCE {source}; choose a folder outside"):
            made(source, inside)
        assert not (inside / "work").exists()
    with pytest.raises(UserError, match=r"holds \w+ and is no token store"):
        made(source, tmp_path)
    with pytest.raises(UserError, match="its validation part has no document"):
        made(source, tmp_path / "third", validation=1e-9, bad_rows=2)
    with pytest.raises(UserError, match="is no token store"):
        Store.open(source)
    with pytest.raises(UserError, match="is not finished"):
        Store.open(out)


def test_two_files_of_bad_rows_share_one_limit(source, tmp_path):
    for name in ("00.jsonl", "11.jsonl"):
        with (source / name).open("a") as stream:
            stream.write("no json\n")
    with pytest.raises(UserError, match="2 bad rows, at most 1 may be passed over"):
        made(source, tmp_path / "store", bad_rows=1)


def test_a_store_takes_the_tokenizer_of_another(source, tmp_path):
    first = made(source, tmp_path / "a").store
    second = made(source, tmp_path / "b", tokenizer=first.path, vocab_size=0).store
    assert sha256(second.path / "tokenizer.json") == sha256(first.path / "tokenizer.json")
    assert second.info.vocab_size == VOCAB
    assert [s.sha256 for s in second.tokens("train").info.shards] == [
        s.sha256 for s in first.tokens("train").info.shards
    ]


def test_a_tokenizer_that_was_replaced_is_refused(source, tmp_path):
    for name, parts in {"a": PARTS, "b": PARTS[:100]}.items():
        write_lines(tmp_path / f"{name}.jsonl", parts)
        made(tmp_path / f"{name}.jsonl", tmp_path / name)
    given, out = tmp_path / "tokenizer.json", tmp_path / "store"
    given.write_bytes((tmp_path / "a" / "tokenizer.json").read_bytes())
    made(source, out, tokenizer=given)
    plan = out / "work" / "plan.json"
    old = json.loads(plan.read_text())
    del old["settings"]["given_sha256"]  # as plans of before
    plan.write_text(json.dumps(old, indent=2))
    made(source, out, tokenizer=given)
    made(source, tmp_path / "second", tokenizer=given)
    given.write_bytes((tmp_path / "b" / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match="made with other settings: given_sha256: "):
        made(source, tmp_path / "second", tokenizer=given)


def test_a_file_that_changes_between_the_passes_is_noticed(source, tmp_path, monkeypatch):
    def changes(piece):
        path = source / piece.group.files[0].name
        path.write_text(path.read_text().replace("the", "teh"))
        os.utime(path, ns=(1, 1))
        return shards_module.encode(piece)

    monkeypatch.setattr("llmnas.pipeline.make_store.encode", changes)
    with pytest.raises(RunError, match=r"00\.jsonl, 01\.jsonl changed while the store was made"):
        made(source, tmp_path / "store")
    assert not list((tmp_path / "store").glob("*.bin"))


def test_the_verb_makes_a_store(llmnas, source, tmp_path):
    out = tmp_path / "store"
    options = ("--out", str(out), "--workers", "1", "--validation", "0.2", "--shard-bytes", "12K")
    done = llmnas("prepare", str(source), *options, "--vocab-size", str(VOCAB))
    assert done.code == 0
    assert f"store: {out}" in done.out
    assert Store.open(out).info.vocab_size == VOCAB
    for words, said in (
        (("--task", "3/3"), "--task 3/3: must read I/N"),
        (("--shard-bytes", "many"), "--shard-bytes many"),
        (("--tokenizer", str(out)), "--vocab-size: not with --tokenizer"),
        (("--set", "seed=1"), "--set: not with --out"),
    ):
        assert said in llmnas("prepare", str(source), *options[:2], "--vocab-size", str(VOCAB), *words).complaint
    assert "--workers: only with --out STORE" in llmnas("prepare", "quickstart", "--workers", "2").complaint
