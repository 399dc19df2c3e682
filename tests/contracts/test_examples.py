"""The examples run as they stand, and the API page is what the docstrings say now."""

import importlib.util
import subprocess
import sys

import pytest
import tiny

EXAMPLES = sorted((tiny.ROOT / "examples").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.stem != "own_metric"], ids=lambda path: path.stem)
def test_example_runs(path, tmp_path):
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, env=tiny.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 3
    assert list(tmp_path.iterdir()) == []


def test_own_metric_is_searched_by(copied, llmnas):
    for name in ("evaluations.sqlite", "pareto.json", "decision.json"):
        (copied.folder / name).unlink()
    metric = tiny.ROOT / "examples" / "own_metric.py"
    done = llmnas(
        "search", copied.config, "--run-dir", copied.folder, "--objective", f"{metric}:tokens_in_a_megabyte=max"
    )
    assert done.code == 0, done.err
    assert "tokens_in_a_megabyte" in " ".join(done.out.split())


def test_the_api_page_is_current():
    maker = load(tiny.ROOT / "docs" / "make_api.py")
    assert maker.PAGE.read_text(encoding="utf-8") == maker.render(), "run: python docs/make_api.py"
