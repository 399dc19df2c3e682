"""What docs/darts.md says was measured is what the script stored; and the script runs."""

import importlib.util
import json
import sys
from dataclasses import replace

import pytest
import tiny


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("darts_collapse", tiny.ROOT / "benchmarks" / "darts_collapse.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_stored_numbers(script):
    stored = json.loads((tiny.ROOT / "benchmarks" / "results" / "darts_collapse.json").read_text())
    page = (tiny.ROOT / "docs" / "darts.md").read_text()
    for scale in stored.values():
        assert scale["variants"].keys() >= scale["runs"].keys()
        assert "\n".join(script.table(scale["runs"])) in page


def test_variants_run(script):
    scale = replace(script.SCALES["tiny"], tokens=600, short=2, long=4, every=2, stride=60, alone=2)
    tokens, windows = script.text(scale)
    for name in ("ten times the text", "early stopping", "penalty below a least size", "weights regularised"):
        options = {**scale.variants[name], "trace_every": 2}
        times = options.pop("times", 1)
        found = script.run(scale, options, 0, tokens[: scale.tokens * times], windows[:4])
        assert len(found["trace"]) == options["steps"] // 2, name
    assert script.alone_loss(scale, found["arch"], 0, tokens, windows[:4]) > 4
