"""`llmnas ladder`: subsets chosen on some windows and reported on others, beside the same depths trained alone."""

import json

import numpy as np
import pytest

from llmnas.config import load_config
from llmnas.evaluate.quality import window_losses
from llmnas.pipeline.context import Context
from llmnas.runs import RunFolder
from llmnas.space import Architecture
from llmnas.tracking import Tracker


def test_every_depth_has_a_rung_of_right_losses(copied, llmnas):
    sets = ("--set", "ladder.train={steps: 2}", "--set", "ladder.lr_grid=[0.01, 0.02]", "--set", "ladder.seeds=2")
    done = llmnas("ladder", copied.config, "--run-dir", copied.folder, *sets)
    assert done.code == 0, done.err
    assert "Depth ladder" in done.out
    result = json.loads((copied.folder / "ladder" / "result.json").read_text())
    assert (copied.folder / "ladder" / "ladder.png").stat().st_size > 1000
    assert [rung["depth"] for rung in result["rungs"]] == [1, 2]
    shallow, whole = result["rungs"]
    assert shallow["tried"] == 2
    assert whole["loss"] == whole["first_layers"] == whole["even_layers"]
    assert all(len(rung["alone"]) == 2 for rung in result["rungs"])
    config = load_config(copied.config, [])
    context = Context(config, RunFolder(copied.folder), Tracker(copied.folder, "off", "x", {}))
    windows, _ = context.windows(2 * config.search.windows)
    model = context.supernet()
    chosen = {
        tuple(i for i, layer in enumerate(arch.layers) if layer): float(
            window_losses(model, arch, windows[0::2]).mean()
        )
        for arch in (Architecture.from_dict(shallow["architecture"]), other(shallow))
    }
    assert min(chosen, key=chosen.get) == tuple(shallow["kept"])
    arch = Architecture.from_dict(shallow["architecture"])
    assert shallow["loss"] == pytest.approx(np.mean(window_losses(model, arch, windows[1::2])), rel=1e-6)
    before = (copied.folder / "ladder" / "result.json").read_text()
    assert llmnas("ladder", copied.config, "--run-dir", copied.folder, *sets).code == 2
    assert llmnas("ladder", copied.config, "--run-dir", copied.folder, *sets, "--resume").code == 0
    assert (copied.folder / "ladder" / "result.json").read_text() == before


def other(rung):
    """The other layer of two, alone."""
    arch = Architecture.from_dict(rung["architecture"])
    return Architecture(arch.hidden_size, tuple(reversed(arch.layers)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("ladder.depths=[3]", ["ladder.depths", "3", "1, 2"]),
        ("ladder={seeds: 0, lr_grid: [0.1]}", ["ladder.lr_grid", "ladder.seeds 0"]),
        ("ladder.train={stepss: 1}", ["ladder.train", "stepss"]),
        ("search.windows=5000", ["search.windows = 5000, and as many to report on", "validation"]),
    ],
)
def test_bad_ladders_are_refused(copied, llmnas, change, words):
    done = llmnas("ladder", copied.config, "--run-dir", copied.folder, "--set", change)
    assert done.code == 2
    assert all(word in done.complaint for word in words), done.complaint
