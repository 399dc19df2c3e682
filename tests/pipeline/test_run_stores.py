"""Runs that name token stores: mixed by weight, measured on each named text, bound to what the stores were."""

import json
import shutil

import numpy as np
import pytest
import tiny

from llmnas.config import load_config
from llmnas.data import Mixture, Store, TokenFile
from llmnas.errors import UserError
from llmnas.pipeline.context import Context
from llmnas.pipeline.make_store import make_store
from llmnas.pipeline.prepare import prepare
from llmnas.pipeline.store_common import Request
from llmnas.pipeline.verify import verify
from llmnas.runs import RunFolder
from llmnas.tracking import Tracker

VOCAB = 300


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Two stores of one tokenizer, and one of another."""
    folder = tmp_path_factory.mktemp("stores")
    texts = [file.read_text() for file in sorted(tiny.SPEECHES.glob("*.txt"))[:6]]
    for name, parts in {"early": texts[:3], "late": texts[3:], "other": texts[:2]}.items():
        rows = [{"text": " ".join(part.split()[i : i + 60])} for part in parts for i in range(0, 1200, 60)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        tokenizer = folder / "early" if name == "late" else None
        request = Request(
            str(folder / f"{name}.jsonl"),
            folder / name,
            validation=0.3,
            vocab_size=VOCAB,
            tokenizer=tokenizer,
            workers=1,
        )
        make_store(request, lambda *_: None)
    return folder


def config_of(folder, stores, **data):
    config = tiny.write_config(folder, "sotu")
    values = {"tokens": [{"path": str(stores / "early"), "weight": 3}, {"path": str(stores / "late")}], **data}
    return config, [f"data={json.dumps(values)}"]


def context_of(folder, config, sets):
    run = RunFolder(folder)
    return Context(load_config(config, sets), run, Tracker(run.path, "off", "", {}))


def test_a_run_reads_its_stores_by_weight_and_measures_each(stores, tmp_path):
    context = context_of(tmp_path / "run", *config_of(tmp_path, stores))
    prepare(context)
    sequences = context.sequences(32, seed=1)
    assert isinstance(sequences, Mixture)
    assert sequences.counts.tolist() == [3072, 1024]
    early, late = (Store.open(stores / name) for name in ("early", "late"))
    assert len(context.tokens("train").tokens) == early.info.tokens["train"] + late.info.tokens["train"]
    places = np.arange(len(context.tokens("validation").tokens))
    expected = [
        np.asarray(store.tokens("validation").tokens[np.arange(store.info.tokens["validation"])])
        for store in (early, late)
    ]
    assert np.array_equal(context.tokens("validation").tokens[places], np.concatenate(expected))
    info = context.tokens("validation").info
    assert info.text_bytes == sum(store.tokens("validation").info.text_bytes for store in (early, late))
    assert context.named_windows(4).keys() == {"early", "late"}
    assert context.run.recorded("prepare")["train_tokens"] == early.info.tokens["train"] + late.info.tokens["train"]
    assert verify(context.run.path).damaged == []
    one = [f"data={json.dumps({'tokens': [{'path': str(stores / 'early')}]})}"]
    alone = context_of(tmp_path / "alone", config_of(tmp_path, stores)[0], one)
    prepare(alone)
    assert np.array_equal(alone.sequences(32, seed=1).batch(0, 8), sequences.parts[0].batch(0, 8))
    assert alone.named_windows(4) == {}


def test_what_is_measured_may_have_names_of_its_own(stores, tmp_path):
    config, sets = config_of(tmp_path, stores, validation={"new": str(stores / "late"), "old": str(stores / "early")})
    context = context_of(tmp_path / "run", config, sets)
    prepare(context)
    assert list(context.named_windows(4)) == ["new", "old"]
    assert (
        TokenFile.open(context.run.tokens("validation-new")).info.tokens
        == Store.open(stores / "late").info.tokens["validation"]
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"tokens": [{"path": "nowhere"}]}, "nowhere: is no token store"),
        ({"tokens": [{"path": "early"}, {"path": "other"}]}, "other has another tokenizer than .*early"),
    ],
)
def test_stores_that_do_not_fit_are_one_line(stores, tmp_path, data, said):
    values = {"tokens": [{**store, "path": str(stores / store["path"])} for store in data["tokens"]]}
    context = context_of(tmp_path / "run", tiny.write_config(tmp_path, "sotu"), [f"data={json.dumps(values)}"])
    with pytest.raises(UserError, match=said):
        prepare(context)
    assert not (tmp_path / "run" / "data").exists()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"tokens": [{"path": "a"}], "text_field": "body"}, "data.text_field does nothing with data.tokens"),
        ({"tokens": [{"path": "a"}], "validation": 0.2}, "with data.tokens leave it out, or name stores"),
        ({"tokens": [{"path": "a"}, {"path": "a"}]}, "names a store twice"),
        ({"validation": {"a": "b"}}, "names stores, which needs data.tokens"),
        ({"tokens": [{"path": "a", "weight": 0}]}, "weight"),
    ],
)
def test_keys_that_do_nothing_are_refused(tmp_path, data, said):
    with pytest.raises(UserError, match=said):
        load_config(tiny.write_config(tmp_path, "sotu"), [f"data={json.dumps(data)}"])


def test_a_store_that_changes_under_a_run_is_noticed(stores, tmp_path):
    shutil.copytree(stores, tmp_path / "stores")
    context = context_of(tmp_path / "run", *config_of(tmp_path, tmp_path / "stores"))
    prepare(context)
    description = tmp_path / "stores" / "late" / "train.json"
    description.write_text(description.read_text().replace('"text_bytes": ', '"text_bytes": 1'))
    with pytest.raises(UserError, match="late: has other tokens than when this run was prepared"):
        context.sequences(32, seed=1)


def test_a_store_whose_tokenizer_was_replaced_is_refused(stores, tmp_path):
    shutil.copytree(stores, tmp_path / "stores")
    context = context_of(tmp_path / "run", *config_of(tmp_path, tmp_path / "stores"))
    tokenizer = tmp_path / "stores" / "late" / "tokenizer.json"
    shutil.copyfile(stores / "other" / "tokenizer.json", tokenizer)
    with pytest.raises(UserError, match=r"late/tokenizer\.json: not the tokenizer that its tokens were made with"):
        prepare(context)
    tokenizer.unlink()
    with pytest.raises(UserError, match=r"late/tokenizer\.json"):
        prepare(context)
    assert not (tmp_path / "run" / "data").exists()


@pytest.mark.full
def test_a_run_from_stores_trains_and_reports_every_text(llmnas, stores, tmp_path):
    config, sets = config_of(tmp_path, stores)
    folder = tmp_path / "run"
    done = llmnas("run", str(config), "--run-dir", str(folder), "--set", sets[0])
    assert done.code == 0, done.err
    result = json.loads((folder / "retrain" / "result.json").read_text())
    (first, *_) = result["runs"]["found"]
    assert first["val_loss_by_text"].keys() == {"early", "late"}
    assert min(first["val_loss_by_text"].values()) <= first["val_loss"] + 0.2
    metrics = (folder / "metrics.jsonl").read_text()
    assert "val_loss_largest_early" in metrics
    assert "val_loss_largest_late" in metrics
    assert "early" in done.out
    assert llmnas("verify", str(folder)).code == 0


def test_a_run_of_a_source_is_a_store_that_others_name(tiny_run, tmp_path):
    store = Store.open(tiny_run.folder / "data")
    sets = [f"data={json.dumps({'tokens': [{'path': str(store.path)}]})}"]
    context = context_of(tmp_path / "run", tiny_run.config, sets)
    prepare(context)
    assert context.tokens("train").info == store.tokens("train").info
