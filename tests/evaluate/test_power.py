"""RAPL counters read from a tree like the kernel's; a meter that does not move is no measurement."""

import pytest

from llmnas.cost import Workload
from llmnas.errors import RunError
from llmnas.evaluate import power
from llmnas.evaluate.measure import Bench
from llmnas.evaluate.power import Meter, find_meter, measure_energy, rapl_zones
from llmnas.space import Architecture, BaseModel, LayerSpec

BENCH = Bench()
ARCH, BASE = Architecture(8, (LayerSpec(1, 1, 4, 8),)), BaseModel(vocab_size=16, max_seq=8)


def zone(root, folder, name, energy, most=1_000_000):
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(name + "\n")
    (path / "energy_uj").write_text(f"{energy}\n")
    (path / "max_energy_range_uj").write_text(f"{most}\n")
    return path


def test_packages_and_memory_count_and_cores_inside_of_a_package_do_not(tmp_path):
    package = zone(tmp_path, "intel-rapl:0", "package-0", 100)
    zone(tmp_path, "intel-rapl:0:0", "core", 50)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 999_000)
    (tmp_path / "intel-rapl").mkdir()
    assert rapl_zones(tmp_path) == [package, memory]
    meter = find_meter(BENCH, tmp_path)

    def work():
        (package / "energy_uj").write_text("400100")
        (memory / "energy_uj").write_text("4000")  # went round: 1000 to the end, 4000 more

    assert meter.joules(work) == pytest.approx(0.4 + 0.005)
    assert "RAPL, 2 zones" in meter.source


def test_without_counters_there_is_no_meter(tmp_path):
    assert find_meter(BENCH, tmp_path) is None
    assert find_meter(BENCH, tmp_path / "absent") is None


def test_counters_that_may_not_be_read_are_no_meter(tmp_path, monkeypatch):
    zone(tmp_path, "intel-rapl:0", "package-0", 100)

    def refuse(path):
        raise PermissionError(path)

    monkeypatch.setattr(power, "_counter", refuse)
    assert find_meter(BENCH, tmp_path) is None


def test_joules_are_of_one_pass(monkeypatch):
    passes = []
    monkeypatch.setattr(power, "make_pass", lambda *_: lambda: passes.append(1))

    def joules(work):
        before = len(passes)
        work()
        return 0.5 * (len(passes) - before)

    found = measure_energy([ARCH, ARCH], BASE, "decode", Workload(1, 4), BENCH, Meter("a fake", joules), window=1e-4)
    assert found == pytest.approx([0.5, 0.5])


def test_counter_that_stands_still_is_an_error_and_never_a_zero():
    still = Meter("a broken counter", lambda work: (work(), 0.0)[1])
    with pytest.raises(RunError, match=r"a broken counter counted 0\.0 J"):
        measure_energy([ARCH], BASE, "decode", Workload(1, 4), BENCH, still, window=1e-3)
