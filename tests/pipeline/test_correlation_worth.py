"""What `correlate` says beside tau: regret, baselines and agreement among networks of like size."""

import json

import numpy as np
import pytest
from scipy import stats
from tiny import ROOT

from llmnas.config import load_config
from llmnas.cost import count_params
from llmnas.pipeline.context import Context
from llmnas.pipeline.correlate import band_architectures, worth
from llmnas.pipeline.tables import correlation_table
from llmnas.report.plots import correlation_png
from llmnas.runs import RunFolder
from llmnas.tracking import Tracker


@pytest.mark.parametrize(("params", "low", "high"), [(None, 818_182, 1_000_000), (950_000, 855_000, 1_000_000)])
def test_the_band_stays_within_the_budget(tmp_path, params, low, high):
    """Beyond it the supernet has trained nothing."""
    sets = ["budget={max_params: 1000000}", "correlate.architectures=12"] + (
        [f"correlate.params={params}"] if params else []
    )
    config = load_config(ROOT / "search_configs" / "dense_1m.yaml", sets)
    context = Context(config, RunFolder(tmp_path), Tracker(tmp_path, "off", "", {}))
    counts = [count_params(arch, config.space.base).total for arch in band_architectures(context)]
    assert len(counts) == 12
    assert low - 1 <= min(counts) <= max(counts) <= high


def example(count=24):
    """Losses that fall with size, and within a size follow what only the supernet knows."""
    rng = np.random.default_rng(0)
    params = np.sort(rng.uniform(0.9e6, 1.1e6, count))
    hidden = rng.normal(scale=0.05, size=count)
    truth = 5 - np.log(params / 1e6) + hidden
    predicted = truth + rng.normal(scale=0.01, size=count)
    return {"supernet": predicted, "params_only": -params, "flops_only": -params * rng.uniform(0.9, 1.1, count)}, truth


def test_every_score_has_regret_bands_and_near_pairs():
    scores, truth = example()
    params = -scores["params_only"]
    found = worth(scores, truth, params)
    json.dumps(found, allow_nan=False)
    for name, score in scores.items():
        assert set(found["regret"][name]) == {"1", "3", "5"}
        best = truth[np.argsort(score)[:3]].min() - truth.min()
        assert found["regret"][name]["3"]["value"] == best
        bands = found["bands"][name]
        assert [band["networks"] for band in bands] == [6, 6, 6, 6]
        first = stats.kendalltau(score[:6], truth[:6]).statistic
        assert abs(bands[0]["tau"]["value"] - first) < 1e-12
    near = found["near_pairs"]
    assert near["supernet"]["low"] > near["params_only"]["value"]


def test_few_networks_and_constant_scores_leave_out_what_is_undefined():
    found = worth({"supernet": np.zeros(4)}, np.arange(4.0), np.array([1.0, 2.0, 4.0, 8.0]))
    json.dumps(found, allow_nan=False)
    assert set(found["regret"]["supernet"]) == {"1", "3"}
    assert found["bands"]["supernet"] == []
    assert found["near_pairs"] == {}


def test_table_and_picture(tmp_path):
    scores, truth = example()
    params = -scores["params_only"]
    agreement = {name: {"tau": 0.5, "low": 0.1, "high": 0.9, "spearman": 0.6} for name in (*scores, "seed_to_seed")}
    pairs = [{"cosine": cosine, "opposed": 0.25, "shared": 100} for cosine in (0.5, -0.1)]
    conflicts = {"windows": 16, "pairs": pairs}
    found = {"agreement": agreement, "params": params.tolist(), **worth(scores, truth, params), "conflicts": conflicts}
    table = correlation_table(found)
    by_name = {row[0]: row for row in table.rows}
    assert by_name["seed_to_seed"][4:] == ("", "", "", "")
    assert all(cell for name in scores for cell in by_name[name])
    assert "pairs whose parameters differ by at most 2%" in table.note
    assert "Tau of supernet by parameters" in table.note
    assert "2 pairs of networks on the same 16 training sequences" in table.note
    assert "cosine 0.20 (-0.10 to 0.50), 1 of them conflict (cosine below 0), signs oppose at 25% of" in table.note
    # a result written before these numbers existed
    old = correlation_table({"agreement": agreement, "params": params.tolist()})
    assert len(old.rows) == 4
    correlation_png(tmp_path / "correlation.png", scores["supernet"], truth, params)
    assert (tmp_path / "correlation.png").read_bytes().startswith(b"\x89PNG")
