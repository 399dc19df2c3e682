"""What docs/entanglement.md says was measured is what the script stored; and both scripts run."""

import json

import entanglement
import entanglement_report as report
import numpy as np
import pytest
import tiny
from scipy import stats


@pytest.fixture
def study(monkeypatch, tmp_path):
    """Three networks, a handful of steps, little text."""
    values = {**entanglement.VALUES, "data": {"source": str(tiny.write_corpus(tmp_path / "text", 8))}}
    monkeypatch.setattr(entanglement, "VALUES", values)
    for name, value in {"NETWORKS": 3, "WINDOWS": 4}.items():
        monkeypatch.setattr(entanglement, name, value)
    monkeypatch.setattr(report, "GRADIENT_WINDOWS", 4)
    for name, value in {"ALONE": 2, "ALONE_LONGER": 3, "SUPERNET": 3, "SUPERNET_LONGER": 6}.items():
        monkeypatch.setattr(entanglement, name, value)
        monkeypatch.setattr(report, name, value)
    return entanglement.Study(tmp_path / "study")


@pytest.mark.full
def test_both_scripts_run(study, capsys):
    with pytest.raises(SystemExit, match="trained alone"):
        report.gather(study)
    jobs = list(entanglement.jobs())
    assert len({job.label for job in jobs}) == len(jobs) == 2 * (3 + 9 + 5) + 1 + 3 + 1
    for job in jobs:
        study.do(job)
    capsys.readouterr()
    again = [study.do(job) for job in jobs]
    assert not capsys.readouterr().out  # nothing was trained twice
    assert all(np.isfinite(one["losses"]).all() and one["cpu_seconds"] > 0 for one in again)

    found = report.gather(study)
    losses = {job.label: one["losses"] for job, one in zip(jobs, again, strict=True)}
    alone = np.mean([[losses[f"alone-{i}-seed{seed}-2"][0] for i in range(3)] for seed in (0, 1)], 0)
    fair = np.array([losses[f"sampler-fair-whole-space-seed{seed}-3"] for seed in (0, 1)])
    row = found["samplers"]["fair, whole space"]
    assert row["tau"]["value"] == pytest.approx(stats.kendalltau(fair[:, :3].mean(0), alone).statistic)
    assert row["gap"] == pytest.approx((fair[:, :3] - alone).mean(1))
    middle = {name: losses[f"dimension-{name}-seed1-3"][-1] for name in ("nothing", "depth")}
    assert found["dimensions"]["depth"]["gaps"][1] == pytest.approx(middle["depth"] - middle["nothing"])
    everything = found["dimensions"]["everything"]
    assert everything["networks"] == study.space.size()
    assert everything["losses"] == [losses[f"sampler-uniform-whole-space-seed{seed}-3"][-1] for seed in (0, 1)]
    gradients = found["gradients"]["fair, whole space"]
    assert gradients["all"]["pairs"] == 3
    assert gradients["all"]["least"] <= gradients["all"]["cosine"] <= 1
    assert len(report.sampler_table(found)) == 2 + 9 + 1 + 3
    assert len(report.dimension_table(found)) == 2 + 6
    assert len(report.gradient_table(found)) == 2 + 10


def test_one_dimension_varies_around_the_network_that_all_hold(study):
    sizes = {"nothing": 1, "hidden_size": 4, "depth": 51, "heads": 4, "ffn_size": 64}
    for name in entanglement.DIMENSIONS:
        space = study.one_dimension(name)
        assert space.contains(study.middle)
        assert space.size() == sizes[name]
    assert all(study.space.contains(arch) for arch in study.networks)


@pytest.mark.parametrize("table", [report.sampler_table, report.dimension_table, report.gradient_table])
def test_the_page_shows_the_stored_numbers(table):
    stored = json.loads((tiny.ROOT / "benchmarks" / "results" / "entanglement.json").read_text())
    assert "\n".join(table(stored)) in (tiny.ROOT / "docs" / "entanglement.md").read_text()
