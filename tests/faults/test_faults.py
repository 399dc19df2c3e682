"""Nothing wrong passes in silence, ends in a traceback, waits for ever or runs a stranger's code: many cases, counted.

The goal is 0 of each. `make test-full` prints the counts at its end.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest
import tiny
import yaml
from forked import Counts, forked, verb
from matrix import run_matrix
from real_models import write_glass

from llmnas.data import load_tokenizer
from llmnas.errors import UserError
from llmnas.process import complain

pytestmark = [pytest.mark.full, pytest.mark.timeout(7200)]
SECONDS = 120


def require_good(counts, record_property):
    record_property("counts", str(counts))
    assert not counts.bad, "\n".join([str(counts), *counts.bad])


@pytest.fixture
def anew(tmp_path):
    """A folder that is empty each time it is asked for."""
    place = tmp_path / "case"

    def make():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return place

    return make


def test_every_file_of_a_run_damaged_under_every_verb_that_reads_it(tiny_run, tmp_path, record_property):
    require_good(run_matrix(tiny_run.config, tiny_run.folder, tmp_path), record_property)


def test_configs(anew, record_property):
    counts = Counts("configs")
    for number, text in enumerate(fuzz.configs(tiny.CONFIG, 500)):
        folder = anew()
        (folder / "x.yaml").write_bytes(text)
        ended = forked(verb("plan", "x.yaml"), folder, SECONDS)
        counts.add(f"config {number}", ended.verdict, ended)
    require_good(counts, record_property)


def test_command_lines(anew, record_property):
    counts = Counts("command lines")
    config = yaml.safe_dump({**tiny.CONFIG, "data": {"source": "absent"}})
    for number, arguments in enumerate(fuzz.command_lines(200)):
        folder = anew()
        (folder / "tiny.yaml").write_text(config)
        (folder / "text").mkdir()
        (folder / "text" / "a.txt").write_text("We the people")
        os.mkfifo(folder / "pipe")
        ended = forked(verb(*arguments), folder, SECONDS)
        counts.add(f"command line {number} {arguments!r}", ended.verdict, ended)
    require_good(counts, record_property)


def test_exported_folders(tiny_run, anew, record_property):
    counts = Counts("exported folders")
    (source,) = (path.parent for path in tiny_run.folder.glob("export/*/llmnas.json"))
    for number in range(100):
        folder = anew()
        model = shutil.copytree(source, folder / "model")
        fuzz.damage_model(model, number)
        ended = forked(verb("generate", model, "--prompt", "We", "--tokens", "3"), folder, SECONDS)
        counts.add(f"exported folder {number}", ended.verdict, ended)
    require_good(counts, record_property)


def test_model_folders(anew, tmp_path, record_property):
    counts = Counts("model folders")
    source = tmp_path / "glass"
    source.mkdir()
    write_glass(source)
    for number in range(100):
        folder = anew()
        model = shutil.copytree(source, folder / "model")
        fuzz.damage_model(model, number)
        ended = forked(verb("compress", model, "--max-params", "400k", "--corpus", "absent"), folder, SECONDS)
        counts.add(f"model folder {number}", ended.verdict, ended)
    require_good(counts, record_property)


def test_tokenizers(tiny_run, anew, record_property):
    counts = Counts("tokenizers")
    stored = json.loads((tiny_run.folder / "data" / "tokenizer.json").read_text())
    for number, text in enumerate(fuzz.tokenizers(stored, 100)):
        folder = anew()
        (folder / "tokenizer.json").write_bytes(text)

        def load(path=folder / "tokenizer.json"):
            try:
                load_tokenizer(path).encode("We the people")
            except UserError as error:
                complain(error)
                raise SystemExit(2) from None

        ended = forked(load, folder, SECONDS)
        counts.add(f"tokenizer {number}", ended.verdict, ended)
    require_good(counts, record_property)


def test_every_write_that_can_fail(tiny_run, tmp_path, record_property):
    """ENOSPC from the n-th write on, and EIO once: through the C library, so torch's and SQLite's writes too."""
    here, shim = Path(__file__).parent, tmp_path / "failing.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, here / "failing_writes.c", "-ldl"], check=True)
    path = os.pathsep.join(map(str, (here, tiny.ROOT)))
    done = subprocess.run(
        [sys.executable, here / "write_failures.py", tiny_run.config, tmp_path, "40"],
        env=tiny.environment(LD_PRELOAD=str(shim), PYTHONPATH=path), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    record_property("counts", found["counts"])
    assert not found["bad"], "\n".join([found["counts"], *found["bad"]])
