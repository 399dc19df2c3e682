"""One measurement of a device serves every run that needs the same."""

import logging

import pytest

from llmnas.config import Config
from llmnas.cost import Workload
from llmnas.errors import UserError
from llmnas.evaluate.measure import measure_table
from llmnas.pipeline.latency import device_tables, latency_table
from llmnas.runs import RunFolder

SPACE = {
    "base": {"vocab_size": 270, "max_seq": 16}, "layers": 2, "hidden_size": [8, 16], "depth": [1, 2],
    "kv_heads": 1, "queries_per_group": 1, "head_dim": 4, "ffn_size": [8, 16, 32],
}  # fmt: skip
BATCH = Workload(batch=1, context=8)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """A cache of its own, and the phases that were really measured."""
    monkeypatch.setenv("LLMNAS_CACHE", str(tmp_path / "cache"))
    asked = []

    def counted(space, phase, *others):
        asked.append(phase)
        return measure_table(space, phase, *others)

    monkeypatch.setattr("llmnas.pipeline.latency.measure_table", counted)
    return asked


def config(seconds=0.01, **space):
    values = {"name": "latency", "data": {"source": "corpus.txt"}, "space": SPACE | space}
    search = {"objectives": {"val_loss": "min", "latency_ms": "min"}}
    train = {"steps": 1, "batch_size": 2, "seq_len": 16, "lr": 0.001}
    return Config.model_validate({**values, "train": train, "search": search, "hardware": {"seconds": seconds}})


def table_of(folder, asked, phase="decode", workload=BATCH):
    return latency_table(asked, RunFolder(folder), phase, workload)


def test_a_device_is_measured_once_for_all_runs(measured, tmp_path):
    first, note = table_of(tmp_path / "a", config())
    assert (measured, note) == (["decode"], "")
    again, note = table_of(tmp_path / "b", config())
    assert (measured, note) == (["decode"], ", for an earlier run")
    files = [RunFolder(tmp_path / name).latency_table("decode").read_bytes() for name in "ab"]
    assert files[0] == files[1]
    arch = config().space.largest()
    assert again.latency_ms(arch) == first.latency_ms(arch)
    assert table_of(tmp_path / "b", config())[1] == ", stored"
    # what the measured stacks do not depend on does not matter: the same sizes, chosen in every layer
    assert table_of(tmp_path / "c", config(ffn_size={"choices": [8, 16, 32], "per_layer": True}))[1]
    assert measured == ["decode"]


def test_anything_that_changes_the_numbers_is_measured_anew(measured, tmp_path):
    table_of(tmp_path / "a", config())
    others = [
        (config(), "prefill", BATCH),
        (config(), "decode", Workload(batch=2, context=8)),
        (config(seconds=0.02), "decode", BATCH),
        (config(ffn_size=[8, 16, 64]), "decode", BATCH),
        (config(base=SPACE["base"] | {"vocab_size": 280}), "decode", BATCH),
    ]
    for i, (asked, phase, workload) in enumerate(others):
        assert table_of(tmp_path / f"b{i}", asked, phase, workload)[1] == ""
    assert len(measured) == 1 + len(others) == len(list(device_tables().iterdir()))


def test_a_cache_that_cannot_be_written_or_read(measured, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        table_of(tmp_path / "a", config())
    assert "not kept for other runs" in caplog.text
    assert RunFolder(tmp_path / "a").latency_table("decode").exists()
    (tmp_path / "cache").unlink()
    table_of(tmp_path / "b", config())
    (kept,) = device_tables().iterdir()
    kept.write_text("{}")
    with pytest.raises(UserError, match=r"not a latency table .*; delete it to have it measured again") as error:
        table_of(tmp_path / "c", config())
    assert str(kept) in str(error.value)


def test_where_tables_are_kept(monkeypatch):
    monkeypatch.delenv("LLMNAS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(device_tables()) == "/somewhere/llmnas/latency"
