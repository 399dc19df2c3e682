"""Token files are whole or absent, and the stream of sequences is a pure function of (seed, n)."""

import hashlib
import json
import signal
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmnas.data import Sequences, TokenFile, token_writer, tokens, write_tokens
from llmnas.errors import UserError
from llmnas.files import hashing, sha256

DOCUMENTS = [[5, 6, 7], [], [8, 0, 511]]


def all_of(file):
    return file.tokens[np.arange(len(file.tokens))]


@pytest.fixture
def file(tmp_path):
    return write_tokens(tmp_path / "train.bin", iter(DOCUMENTS), vocab_size=512, eos_id=0, text_bytes=40)


def test_documents_are_written_with_their_ends(file):
    assert TokenFile.open(file.path) == file
    assert all_of(file).tolist() == [5, 6, 7, 0, 0, 8, 0, 511, 0]
    assert file.path.read_bytes()[:4] == b"\x05\x00\x06\x00"
    assert json.loads(file.path.with_suffix(".json").read_text()) == {
        "dtype": "uint16",
        "tokens": 9,
        "documents": 3,
        "text_bytes": 40,
        "vocab_size": 512,
        "eos_id": 0,
        "shards": [{"tokens": 9, "file_bytes": 18, "sha256": sha256(file.path), "blocks": [sha256(file.path)]}],
    }
    assert sorted(path.name for path in file.path.parent.iterdir()) == ["train.bin", "train.json"]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32"), (200_000, "uint32")])
def test_width_holds_every_id(tmp_path, vocab_size, dtype):
    write_tokens(tmp_path / "a.bin", [[1, vocab_size - 1]], vocab_size, 0, 1)
    file = TokenFile.open(tmp_path / "a.bin")
    assert all_of(file).tolist() == [1, vocab_size - 1, 0]
    assert file.info.dtype == all_of(file).dtype.name == dtype


@pytest.mark.parametrize("ids", [[512], [-1], [3, 70_000]])
def test_ids_outside_the_vocabulary_are_refused(tmp_path, ids):
    with pytest.raises(ValueError, match="document 1: a token id outside the vocabulary of 512"):
        write_tokens(tmp_path / "a.bin", [[1], ids], 512, 0, 1)
    assert list(tmp_path.iterdir()) == []


def sha256_of(data):
    return hashlib.sha256(data).hexdigest()


def flip(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "17 bytes instead of 18"),
        (lambda data: data + b"\x00", "19 bytes instead of 18"),
        (lambda data: flip(data, 0), "SHA-256 differs"),
        (lambda data: flip(data, 17), "SHA-256 differs"),
    ],
)
def test_damage_is_found_and_the_way_out_said(file, damage, message):
    file.path.write_bytes(damage(file.path.read_bytes()))
    with pytest.raises(UserError, match=message) as error:
        all_of(TokenFile.open(file.path))
    assert str(error.value).startswith(f"{file.path}: ")
    assert str(error.value).endswith("delete data/ and run prepare again")


def test_a_block_is_compared_where_it_is_first_read(tmp_path, monkeypatch):
    """Three blocks of 32 bytes; a flipped bit is noticed by whoever reads its block, and by nobody else."""
    monkeypatch.setattr(tokens, "BLOCK", 32)
    monkeypatch.setattr(hashing, "BLOCK", 32)
    file = write_tokens(tmp_path / "a.bin", [list(range(1, 40))], 512, 0, 1)
    whole = file.path.read_bytes()
    assert file.info.shards[0].blocks == tuple(sha256_of(whole[i : i + 32]) for i in (0, 32, 64))
    file.path.write_bytes(flip(whole, 35))
    read = TokenFile.open(file.path).tokens
    assert read[np.array([[0, 15], [32, 39]])].tolist() == [[1, 16], [33, 0]]
    with pytest.raises(UserError, match=r"a\.bin: damaged: bytes 32 to 64 are not what was written"):
        read[np.array([15, 16])]
    with pytest.raises(UserError, match="SHA-256 differs"):
        TokenFile.open(file.path).verify()
    file.path.write_bytes(whole)
    read = TokenFile.open(file.path).tokens
    compared = []
    monkeypatch.setattr(read, "_compare", lambda block: compared.append(block) or read._open.__setitem__(block, False))
    for places in ([0], [39, 20], [20, 0, 39]):
        read[np.array(places)]
    assert compared == [0, 1, 2]


def test_tokens_without_hashes_of_blocks_are_read_whole_once(file):
    sidecar = file.path.with_suffix(".json")
    values = json.loads(sidecar.read_text())
    del values["shards"][0]["blocks"]
    sidecar.write_text(json.dumps(values))
    assert all_of(TokenFile.open(file.path)).tolist() == all_of(file).tolist()
    file.path.write_bytes(flip(file.path.read_bytes(), 3))
    with pytest.raises(UserError, match="SHA-256 differs"):
        TokenFile.open(file.path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-5], "damaged JSON"),
        (lambda text: "[]", "valid dictionary"),
        (lambda text: text.replace('"tokens": 9', '"tokens": 8'), "8 tokens of uint16 are not 18 bytes"),
        (lambda text: text.replace('"tokens": 9', '"tokens": 8', 1), "the shards hold 9 tokens, not 8"),
        (lambda text: text.replace('"dtype": "uint16"', '"dtype": "int8"'), "dtype"),
        (lambda text: text.replace('"documents": 3', '"extra": 3'), r"documents: missing key"),
    ],
)
def test_damaged_description_is_found(file, damage, message):
    sidecar = file.path.with_suffix(".json")
    sidecar.write_text(damage(sidecar.read_text()))
    with pytest.raises(UserError, match=message) as error:
        TokenFile.open(file.path)
    assert str(error.value).startswith(f"{sidecar}: ")


@pytest.mark.parametrize("name", ["train.bin", "train.json"])
def test_missing_half_is_named(file, name):
    file.path.with_name(name).unlink()
    with pytest.raises(UserError, match=rf"{name}: no such file; delete data/"):
        TokenFile.open(file.path)


def test_no_documents_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.bin: no documents"):
        write_tokens(tmp_path / "a.bin", [], 512, 0, 0)
    assert list(tmp_path.iterdir()) == []


def failing():
    yield [1, 2]
    raise RuntimeError("out of paper")


def test_failed_writer_leaves_nothing_or_the_old_file(tmp_path):
    path = tmp_path / "train.bin"
    with pytest.raises(RuntimeError, match="out of paper"):
        write_tokens(path, failing(), 512, 0, 1)
    assert list(tmp_path.iterdir()) == []
    old = write_tokens(path, DOCUMENTS, 512, 0, 1)
    with pytest.raises(RuntimeError, match="out of paper"):
        write_tokens(path, failing(), 512, 0, 1)
    assert TokenFile.open(path) == old


def test_killed_writer_leaves_no_half_file(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from llmnas.data import write_tokens\n"
        "def documents():\n    yield [1] * 100_000\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_tokens(Path(sys.argv[1]), documents(), 512, 0, 1)"
    )
    path = tmp_path / "train.bin"
    ended = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not path.exists()
    assert not path.with_suffix(".json").exists()


def test_replaced_tokens_without_their_description_are_refused(file):
    """As a kill between the two renames leaves it."""
    description = file.path.with_suffix(".json").read_bytes()
    write_tokens(file.path, [[1, 2, 3]], 512, 0, 1)
    file.path.with_suffix(".json").write_bytes(description)
    with pytest.raises(UserError, match="delete data/ and run prepare again"):
        TokenFile.open(file.path)


def test_memory_stays_small_while_writing_and_reading(tmp_path):
    tracemalloc.start()
    try:
        documents = (np.full(10_000, i, dtype=np.uint16) for i in range(400))
        write_tokens(tmp_path / "a.bin", documents, 512, 511, 1)
        file = TokenFile.open(tmp_path / "a.bin")
        sequences = Sequences(file.tokens, seq=128, seed=0)
        sequences.batch(0, 8)
        sequences.fixed(8)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert file.path.stat().st_size > 8_000_000
    assert peak < 2_000_000


sizes = st.integers(1, 40).flatmap(lambda seq: st.tuples(st.integers(seq + 1, 50 * seq + 1), st.just(seq)))


@given(sizes, st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_holds_every_window_once(size, seed, epoch):
    total, seq = size
    sequences = Sequences(np.arange(total, dtype=np.uint16), seq, seed)
    count = sequences.per_epoch
    rows = sequences.batch(epoch * count, count)
    assert rows.shape == (count, seq + 1)
    assert rows.dtype == np.int64
    assert (np.diff(rows, axis=1) == 1).all()  # the tokens are 0, 1, 2, ..., so a row is one stretch of them
    starts = np.sort(rows[:, 0])
    assert (np.diff(starts) == seq).all()
    assert total - count * seq < 2 * seq or count == 1  # what an epoch leaves out is less than two windows


@given(sizes, st.lists(st.tuples(st.integers(0, 200), st.integers(0, 9)), max_size=6))
def test_batches_are_their_single_sequences_in_any_order_of_calls(size, calls):
    total, seq = size
    tokens = np.arange(total, dtype=np.uint32)
    sequences = Sequences(tokens, seq, seed=3)
    for first, count in calls:
        np.random.seed(first)  # the disturbance under test
        singles = [Sequences(tokens, seq, seed=3).batch(first + i, 1) for i in range(count)]
        expected = np.concatenate([np.empty((0, seq + 1), dtype=np.int64), *singles])
        np.testing.assert_array_equal(sequences.batch(first, count), expected)


def test_epochs_and_seeds_differ_in_order_and_offset():
    tokens = np.arange(5_000, dtype=np.uint16)
    streams = [Sequences(tokens, 16, seed) for seed in (0, 1)]
    count = streams[0].per_epoch
    first_tokens = [stream.batch(epoch * count, count)[:, 0] for stream in streams for epoch in range(3)]
    assert len({row.tobytes() for row in first_tokens}) == 6
    assert len({int(row.min()) for row in first_tokens}) > 1


def test_every_token_is_trained_on_in_some_epoch():
    tokens = np.arange(107, dtype=np.uint16)
    sequences = Sequences(tokens, 10, seed=0)
    assert set(sequences.batch(0, 200 * sequences.per_epoch).ravel().tolist()) == set(range(107))


@given(sizes, st.integers(1, 60))
def test_fixed_windows_are_spread_and_do_not_overlap(size, count):
    total, seq = size
    tokens = np.arange(total, dtype=np.uint16)
    rows = Sequences(tokens, seq, seed=0).fixed(count)
    assert rows.shape == (min(count, (total - 1) // seq), seq + 1)
    assert (np.diff(rows, axis=1) == 1).all()
    gaps = np.diff(rows[:, 0])
    assert (gaps >= seq).all()
    assert gaps.size == 0 or gaps.max() - gaps.min() <= seq
    np.testing.assert_array_equal(rows, Sequences(tokens, seq, seed=9).fixed(count))


def test_corpus_shorter_than_a_sequence_is_refused():
    with pytest.raises(UserError, match=r"16 tokens, fewer than one sequence of 16 \+ 1"):
        Sequences(np.zeros(16, dtype=np.uint16), 16, 0)
    assert Sequences(np.arange(17, dtype=np.uint16), 16, 0).batch(5, 2).tolist() == [list(range(17))] * 2


def sharded(path, documents, shard_tokens):
    with token_writer(path, 512, 0, 1, shard_tokens=shard_tokens) as writer:
        for ids in documents:
            writer.add(ids)
    return TokenFile.open(path)


@given(st.lists(st.lists(st.integers(1, 511), max_size=20), min_size=4, max_size=30), st.integers(1, 60))
def test_shards_read_as_one_file(tmp_path_factory, documents, shard_tokens):
    folder = tmp_path_factory.mktemp("tokens")
    whole = write_tokens(folder / "a.bin", documents, 512, 0, 1)
    file = sharded(folder / "b.bin", documents, shard_tokens)
    assert len(list(folder.glob("b*.bin"))) == len(file.info.shards)
    assert sum(shard.tokens for shard in file.info.shards) == len(file.tokens) == len(whole.tokens)
    places = np.random.default_rng(0).integers(len(whole.tokens), size=(3, 7))
    np.testing.assert_array_equal(file.tokens[places], whole.tokens[places])
    sequences, expected = Sequences(file.tokens, 3, seed=0), Sequences(whole.tokens, 3, seed=0)
    np.testing.assert_array_equal(sequences.batch(0, 9), expected.batch(0, 9))
    np.testing.assert_array_equal(sequences.fixed(4), expected.fixed(4))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"a\.2\.bin: no such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-2]), r"a\.2\.bin: damaged: \d+ bytes instead of"),
        (lambda path: path.write_bytes(flip(path.read_bytes(), 3)), r"a\.2\.bin: damaged: .*SHA-256"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path, damage, message):
    sharded(tmp_path / "a.bin", [[1, 2, 3]] * 9, 8)
    damage(tmp_path / "a.2.bin")
    with pytest.raises(UserError, match=message):
        all_of(TokenFile.open(tmp_path / "a.bin"))
