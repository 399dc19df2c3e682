"""The measuring scripts measure what they say; the figures themselves are not tested."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER.parent)}


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_variants_take_turns_and_ratios_are_paired(monkeypatch):
    interleave = load("interleave")
    now, calls = [0.0], []
    monkeypatch.setitem(interleave.CLOCKS, "wall", lambda: now[0])

    def call(name, seconds):
        calls.append(name)
        now[0] += seconds * (1 + len(calls) // 2)  # the machine gets slower and slower

    times = interleave.interleave(
        {"a": lambda: call("a", 2.0), "b": lambda: call("b", 1.0)}, repeats=4, clock="wall", warm=1
    )
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b", "b", "a"]
    assert interleave.ratio(times, "a", "b")["median"] == pytest.approx(2.0, rel=0.2)


def test_equal_compute_measures_distinct_members_of_the_space():
    equal = load("equal_compute")
    networks = equal.networks(equal.NETWORKS, 0)
    assert len({json.dumps(network) for network in networks}) == equal.NETWORKS
    assert all(network[name] in equal.SPACE[name] for network in networks for name in equal.CHOICES)
    assert networks == equal.networks(equal.NETWORKS, 0)


def test_equal_compute_takes_the_best_run_of_a_side(tmp_path):
    equal = load("equal_compute")
    runs = [equal.Run("ours", "single:0", lr, 0.95, 1.0) for lr in (1e-3, 2e-3, 4e-3)]
    for run, loss in zip(runs, (5.0, 4.0, 4.5), strict=True):
        run.json(tmp_path).write_text(json.dumps({"mean_val_loss": loss}))
    assert equal.best(runs, tmp_path) == runs[1]


@pytest.mark.full
def test_our_side_of_equal_compute_runs(tmp_path):
    equal = load("equal_compute")
    rng = np.random.default_rng(0)
    for name, tokens in (("train", 20_000), ("validation", 3_000)):
        rng.integers(0, 4096, tokens).astype("<u2").tofile(tmp_path / f"{name}.bin")
    (tmp_path / "space.json").write_text(json.dumps(equal.SPACE))
    networks = equal.networks(3, 0)
    (tmp_path / "networks.json").write_text(json.dumps(networks))
    files = {"train": "train.bin", "validation": "validation.bin", "space": "space.json"}
    files |= {"architectures": "networks.json", "json": "out.json"}
    command = [sys.executable, str(FOLDER / "equal_ours.py"), "--strategy", "single:4", "--clock", "cpu"]
    command += ["--seconds", "1", "--threads", "1", "--batch", "2", "--seq", "64", "--val-windows", "8"]
    for name, file in files.items():
        command += [f"--{name}", str(tmp_path / file)]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["training"]["clock_seconds"] >= 1
    expected = [4096 * n["hidden_size"] + n["depth"] * layer_parameters(n) + n["hidden_size"] for n in networks]
    assert [found["params"] for found in report["architectures"]] == expected


def layer_parameters(network):
    hidden, heads = network["hidden_size"], network["heads"]
    attention = hidden * 32 * (2 * heads + 2 * heads // 2)  # q and o, k and v at half the heads
    return attention + 3 * hidden * network["ffn_size"] + 2 * hidden


@pytest.mark.full
def test_the_speed_script_runs(tmp_path):
    target = tmp_path / "speed.json"
    command = [sys.executable, str(FOLDER / "supernet_speed.py"), "--quick", "--clock", "cpu", "--threads", "1"]
    output = subprocess.run(
        [*command, "--json", str(target)], env=ENVIRONMENT, check=True, capture_output=True, text=True
    ).stdout
    assert "sandwich / sum of its parts" in output
    report = json.loads(target.read_text())
    assert set(report["sub_network"]) == {"smallest", "middle", "largest"}
    assert all(found["ratio"]["median"] > 0 for found in report["sub_network"].values())
    assert report["memory"]["ours"]["peak_mib"] > 0


@pytest.mark.full
def test_the_throughput_script_runs(tmp_path):
    target = tmp_path / "throughput.json"
    command = [sys.executable, str(FOLDER / "throughput.py"), "--quick", "--json", str(target)]
    output = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True).stdout
    assert "our step / bare PyTorch" in output
    report = json.loads(target.read_text())
    assert 0 < report["training"]["data_share"]["median"] < 1
    assert report["training"]["utilisation"] > 0
    assert report["tokenising"]["tokens_per_second"] > 0
    assert set(report["processes"]["tokens_per_second"]) == {"one", "two"}


@pytest.fixture
def measured_elastic(copied, llmnas, tmp_path):
    """Runs a script on an elastic checkpoint and gives back its JSON."""

    def run(script, *options):
        assert llmnas("export", copied.config, "--run-dir", copied.folder, "--elastic").code == 0
        target = tmp_path / "measured.json"
        command = [sys.executable, str(FOLDER / script), str(copied.folder / "export" / "elastic"), *options]
        subprocess.run([*command, "--json", str(target)], env=ENVIRONMENT, check=True, capture_output=True)
        return json.loads(target.read_text())

    return run


@pytest.mark.full
def test_the_elastic_script_runs(measured_elastic):
    report = measured_elastic("elastic_serving.py", "--context", "16", "--seconds", "0.2")
    assert report["switch_us"] > 0
    assert len(report["subnetworks"]) >= 1
    assert all(row["ms_a_token"] > 0 for row in report["subnetworks"])


@pytest.mark.full
def test_the_load_script_runs(measured_elastic):
    report = measured_elastic("elastic_load.py", "--tokens", "40", "--processes", "1")
    assert [row["phase"] for row in report["phases"]] == [n for n in ("quiet", "busy", "quiet again") for _ in range(2)]
    assert all(row["tokens"] >= 40 and row["mean_ms"] > 0 for row in report["phases"])
