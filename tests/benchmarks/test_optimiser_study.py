"""The study of optimizers compares what it says: the best rate of a variant over all seeds, gaps to the best alone."""

import json
import subprocess
import sys

import pytest
from test_benchmarks import ENVIRONMENT, FOLDER, load

study = load("optimiser_study")


def run(mean):
    return {"mean": mean, "smallest": 5.0, "largest": 3.0, "steps": 300, "seconds": 12.0, "losses": [mean] * 12}


def test_the_table_has_the_best_rate_that_every_seed_tried():
    runs = {
        "adamw all 0.002 0": run(4.0), "adamw all 0.002 1": run(4.2),
        "adamw all 0.004 0": run(4.3), "adamw all 0.004 1": run(4.3), "adamw all 0.008 0": run(3.0),
        "muon slice 0.008 0": run(3.5),
    }  # fmt: skip
    lines = study.table({"supernets": runs}).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| adamw all | 0.002 | 4.100 (4.000, 4.200) | 5.000 | 3.000 | 300 | 12 | - | - |")
    assert lines[3].startswith("| muon slice | 0.008 | 3.500 (3.500) |")


def test_the_gap_is_to_each_network_alone_at_its_best_rate():
    alone = {
        f"adamw {rate} {seed} {i}": {"loss": 3.0 + rate + seed / 10 + i / 100}
        for rate in (0.5, 0.25) for seed in (0, 1) for i in range(12)
    }  # fmt: skip
    assert study.truth({"alone": alone}) == pytest.approx([3.3 + i / 100 for i in range(12)])
    assert study.truth({"alone": {"adamw 0.5 0 0": {"loss": 3.0}}}) is None
    supernets = {"adamw all 0.002 0": run(4.0) | {"losses": [3.5 + i / 100 for i in range(12)]}}
    assert "| +0.200 | 1.00 |" in study.table({"supernets": supernets, "alone": alone})


@pytest.mark.full
def test_the_cost_of_an_update_is_measured(tmp_path):
    done = subprocess.run(
        [sys.executable, FOLDER / "optimiser_step.py", "--quick", "--repeats", "1", "--json", tmp_path / "step.json"],
        env=ENVIRONMENT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads((tmp_path / "step.json").read_text())["milliseconds"]
    assert done.stdout.count("\n") == 4
    assert all(value > 0 for times in found.values() for value in times.values())
