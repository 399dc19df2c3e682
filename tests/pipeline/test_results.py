"""Every key of a stored result that is read back: missing, or of another kind, it is one line that names it."""

import copy
import json

import pytest

from llmnas.errors import UserError
from llmnas.files import as_kind
from llmnas.pipeline import results
from llmnas.pipeline.results import correlated, export_facts, laddered, retrained, search_facts
from llmnas.runs import RunFolder

ARCH = {"hidden_size": 8, "layers": [{"kv_heads": 1, "queries_per_group": 1, "head_dim": 8, "ffn_size": 16}]}
TRAINED = {
    "identity": "a1", "id": "b2", "architecture": ARCH, "seed": 0, "params": 100, "tokens": 64, "val_loss": 5.1,
    "perplexity": 164.0, "bits_per_byte": 2.1,
}  # fmt: skip
WITH_ENDS = {"value": 0.5, "low": 0.1, "high": 0.9}
WHOLE = {
    "Trained": TRAINED,
    "Retrained": {
        "found": "b2", "runs": {"found": [TRAINED]},
        "comparisons": [{"against": "smollm2", "difference": -0.1, "clear": True}],
    },
    "Decision": {
        "chosen": "b2", "reason": "equal", "price": "params", "confidence": 0.95, "windows": {"b2": 4},
        "statements": ["b2 and c3 do not differ"],
    },
    "Laddered": {
        "windows": 6, "seeds": 0,
        "rungs": [{
            "depth": 1, "kept": [0], "exhaustive": True, "params": 100, "architecture": ARCH, "loss": 5.0,
            "first_layers": 5.1, "even_layers": 5.2, "alone": [],
        }],
    },
    "Correlated": {
        "architectures": [ARCH], "supernet_loss": [5.0], "stand_alone_loss": [[5.1], [5.2]], "params": [100],
        "agreement": {"supernet": {"tau": 0.3, "low": 0.1, "high": 0.5, "spearman": 0.4}},
    },
    "Decoded": {"architectures": [ARCH]},
    "Extracted": {"targets": [{"metric": "params", "limit": 100}]},
    "ExportFacts": {"folder": "export/b2"},
}  # fmt: skip


def damaged(value, place=()):
    """(place, the whole value with one key missing, or one value of another kind) for every place in it."""
    found = value
    for part in place:
        found = found[part]
    keys = list(found) if isinstance(found, dict) else range(len(found)) if isinstance(found, list) else ()
    for key in keys:
        yield from damaged(value, (*place, key))
    if place:
        for wrong in (None, "x" if not isinstance(found, str) else 3, [[None]]):
            yield place, replaced(value, place, wrong)
        if isinstance(place[-1], str) and place[-2:-1] != ("agreement",):  # names of scores there, no keys
            yield place, replaced(value, place, ...)


def replaced(value, place, new):
    value = copy.deepcopy(value)
    inner = value
    for part in place[:-1]:
        inner = inner[part]
    if new is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = new
    return value


@pytest.mark.parametrize("name", WHOLE)
def test_a_damaged_key_is_named_in_one_line(name, tmp_path):
    kind, path = getattr(results, name), tmp_path / "result.json"
    assert as_kind({**WHOLE[name], "of a later version": 1}, kind, path)["of a later version"] == 1
    count = 0
    for place, value in damaged(WHOLE[name]):
        count += 1
        with pytest.raises(UserError) as error:
            as_kind(value, kind, path)
        assert str(error.value).startswith(f"{path}: "), (place, value)
        assert "\n" not in str(error.value)
    assert count > 3


def test_readers_name_the_file(tmp_path):
    run = RunFolder(tmp_path)
    with pytest.raises(UserError, match="run `llmnas retrain`"):
        retrained(run)
    for stage, read in [("retrain", retrained), ("ladder", laddered), ("correlate", correlated)]:
        path = run.result(stage)
        path.parent.mkdir()
        path.write_text("{}")
        with pytest.raises(UserError, match="missing key"):
            read(run)
    run.result("correlate").write_text(json.dumps(WHOLE["Correlated"] | {"params": [1, 2]}))
    with pytest.raises(UserError, match="not a value for each architecture"):
        correlated(run)
    run.manifest.write_text('{"stages": {"search": {"windows": "x"}, "export": {"folder": 3}}}')
    with pytest.raises(UserError, match="windows"):
        search_facts(run)
    with pytest.raises(UserError, match="folder"):
        export_facts(run)


@pytest.mark.parametrize("loss", [1e6, -1e6, float("nan"), float("inf")])
def test_a_loss_that_has_no_perplexity_is_damaged(tmp_path, loss):
    with pytest.raises(UserError, match="val_loss"):
        as_kind(TRAINED | {"val_loss": loss}, results.Trained, tmp_path)
