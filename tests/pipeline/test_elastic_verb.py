"""`llmnas export --elastic` and `llmnas generate` within a budget, as a user types them."""

import re
import shutil

import pytest
import tiny

from llmnas.files import read_json


@pytest.fixture(scope="module")
def run_folder(tiny_run, tmp_path_factory):
    """A copy: what the verbs add must not be seen by other tests."""
    return shutil.copytree(tiny_run.folder, tmp_path_factory.mktemp("elastic") / "run")


@pytest.fixture(scope="module")
def exported(tiny_run, run_folder):
    done = tiny.run("export", tiny_run.config, "--run-dir", run_folder, "--elastic")
    assert done.code == 0, done.err
    return run_folder


def test_export_writes_the_front_once(exported, tiny_run, llmnas):
    about = read_json(exported / "export" / "elastic" / "llmnas.json")
    table = read_json(exported / "export" / "elastic" / "config.json")["subnetworks"]
    assert about["export"]["elastic"] == len(table) >= 2
    losses, sizes = ([row["metrics"][name] for row in table] for name in ("val_loss", "params"))
    assert losses == sorted(losses)
    assert sizes == sorted(sizes, reverse=True)
    again = llmnas("export", tiny_run.config, "--run-dir", exported, "--elastic")
    assert again.code == 2
    assert "is there already" in again.complaint


def test_generate_says_what_it_picked(exported, llmnas):
    table = read_json(exported / "export" / "elastic" / "config.json")["subnetworks"]
    smallest = table[-1]
    command = ["generate", exported, "--prompt", "The state of", "--tokens", "4", "--temperature", "0"]
    done = llmnas(*command, "--params", str(int(smallest["metrics"]["params"])))
    assert done.code == 0, done.err
    assert f"picked {smallest['id']}: {int(smallest['metrics']['params']):,} parameters" in done.err
    assert done.out.startswith("The state of")
    done = llmnas(*command, "--latency-ms", "100000", "--memory", "1B")
    assert done.code == 0, done.err
    assert f"picked {table[0]['id']}" in done.err
    assert "ms a token on this device" in done.err


def test_generate_adapts_to_the_load(exported, llmnas):
    command = ["generate", exported, "--prompt", "The state of", "--tokens", "9", "--temperature", "0"]
    alone = llmnas(*command, "--latency-ms", "100000")
    done = llmnas(*command, "--latency-ms", "100000", "--adapt")
    assert done.code == 0, done.err
    assert done.out == alone.out
    assert re.search(r"\d tokens, median .* ms, 0 changes, text read again 0 times; tokens by sub-network", done.err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--adapt",), "--adapt: keeps a latency; give --latency-ms too"),
        (("--adapt", "--params", "1M"), "--adapt: keeps a latency; give --latency-ms too"),
        (("--adapt", "--latency-ms", "0"), "budget: latency_ms = 0.0 must be a positive number"),
        (("--params", "10"), "budget: params = 10 is below the smallest sub-network's"),
        (("--latency-ms", "0.000001"), "budget: latency_ms = 1e-06 is below the smallest sub-network's"),
        (("--latency-ms", "-3"), "budget: latency_ms = -3.0 must be a positive number"),
        (("--params", "many"), "--params many: must be a number of parameters"),
        (("--memory", "x"), "--memory x: must be a number of bytes"),
    ],
)
def test_impossible_limits_are_one_line(exported, llmnas, options, message):
    done = llmnas("generate", exported, "--prompt", "The", *options)
    assert done.code == 2
    assert message in done.complaint


def test_folders_without_a_table_are_refused(tiny_run, llmnas):
    done = llmnas("generate", tiny_run.folder, "--prompt", "The", "--params", "1M")
    assert done.code == 2
    assert "no elastic checkpoint there; run `llmnas export CONFIG --elastic` first" in done.complaint
    (single,) = (tiny_run.folder / "export").iterdir()
    done = llmnas("generate", single, "--prompt", "The", "--params", "1M")
    assert done.code == 2
    assert "holds one network" in done.complaint
