"""Supernets of other seeds are trained as the study's was, and judged as `correlate` judges."""

import json
import sys

import numpy as np
import pytest
import supernet_seeds
from study_run import searched

from llmnas.pipeline.correlate import correlate


@pytest.mark.full
def test_the_supernet_of_the_studys_seed_is_the_studys(tmp_path, monkeypatch, capsys):
    context = searched(tmp_path / "run", tmp_path / "text")
    correlation = correlate(context)
    out = tmp_path / "out.json"
    command = ["seeds", str(tmp_path / "run"), "--folder", str(tmp_path / "seeds"), "--json", str(out)]
    monkeypatch.setattr(sys, "argv", [*command, "--train", "0:4", "1:4", "0:6"])
    supernet_seeds.main()
    assert not json.loads(out.read_text())["by_steps"]["4"]["variants"]
    monkeypatch.setattr(sys, "argv", [*command, "--train", "0:4", "--label", "lower rate", "--set", "train.lr=1e-5"])
    supernet_seeds.main()
    found = json.loads(out.read_text())["by_steps"]
    same = found["4"]["supernets"]
    assert same["seed 0"]["losses"] == pytest.approx(same["of the study"]["losses"])
    assert same["of the study"]["tau"] == correlation["agreement"]["supernet"]["tau"]
    assert same["seed 1"]["losses"] != same["seed 0"]["losses"] != found["6"]["supernets"]["seed 0"]["losses"]
    mean = np.mean([supernet["losses"] for supernet in same.values()], axis=0)
    assert found["4"]["mean_of_scores"]["losses"] == pytest.approx(mean.tolist())
    assert "| 4 | mean of the 3 scores |" in capsys.readouterr().out
    stored = sorted(path.name for path in (tmp_path / "seeds").iterdir())
    wanted = ["seed0-steps4-lower rate.json", "seed0-steps4.json", "seed0-steps6.json", "seed1-steps4.json"]
    assert stored == wanted
    variant = found["4"]["variants"]["seed 0, lower rate"]
    assert variant["losses"] != same["seed 0"]["losses"]
    assert variant["regret"] >= 0
    monkeypatch.setattr(sys, "argv", [*command, "--train", "0:4", "--set", "train.lr=1e-5"])
    with pytest.raises(SystemExit):
        supernet_seeds.main()
