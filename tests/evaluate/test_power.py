"""RAPL counters from a tree like the kernel's, Zeus by its interface; a meter that stands still measures nothing."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from llmnas.cost import Workload
from llmnas.errors import RunError
from llmnas.evaluate import power
from llmnas.evaluate.measure import Bench
from llmnas.evaluate.power import Meter, NoMeter, find_meter, measure_energy, rapl_zones
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
    for folder in (tmp_path, tmp_path / "absent"):
        assert find_meter(BENCH, folder) == NoMeter(f"no RAPL counters in {folder}")


def test_counters_that_may_not_be_read_are_no_meter(tmp_path, monkeypatch):
    """One that may be read is too little: the other package's work would be free."""
    open_, closed = (zone(tmp_path, f"intel-rapl:{i}", f"package-{i}", 100) for i in (0, 1))
    read = power._counter

    def refuse(path):
        if path == closed:
            raise PermissionError("root only")
        return read(path)

    monkeypatch.setattr(power, "_counter", refuse)
    assert read(open_) == 100
    assert find_meter(BENCH, tmp_path) == NoMeter("a RAPL counter cannot be read (PermissionError: root only)")


class ZeusBaseError(Exception):
    """As in zeus/exception.py."""


class ZeusMonitor:
    """The part of zeus 0.11 (zeus/monitor/energy.py) that is used, on a counter of 3 J a read; GPUs are `present`."""

    present = (0, 1)

    def __init__(
        self, gpu_indices=None, cpu_indices=None, approx_instant_energy=False, log_file=None,
        sync_execution_with="torch",
    ):  # fmt: skip
        assert cpu_indices == []  # else it asks for RAPL, which needs root
        for index in gpu_indices:
            if index not in self.present:
                raise ValueError("No GPUs available.")
        self.gpu_indices, self.windows, self.read = gpu_indices, {}, 0.0

    def begin_window(self, key, sync_execution=True):
        if key in self.windows:
            raise ValueError(f"Measurement window '{key}' already exists")
        self.windows[key] = self.read = self.read + 3.0

    def end_window(self, key, sync_execution=True, cancel=False):
        self.read += 3.0
        used = dict.fromkeys(self.gpu_indices, self.read - self.windows[key])
        del self.windows[key]
        return SimpleNamespace(gpu_energy=used, total_energy=sum(used.values()))


@pytest.fixture
def zeus(monkeypatch):
    """The package, as far as it is imported."""
    monitor, exception = ModuleType("zeus.monitor"), ModuleType("zeus.exception")
    monitor.ZeusMonitor, exception.ZeusBaseError = ZeusMonitor, ZeusBaseError
    for module in (ModuleType("zeus"), monitor, exception):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    return monitor


@pytest.mark.parametrize(("device", "index"), [("cuda", 1), ("cuda:0", 0)])
def test_a_gpu_is_measured_by_zeus_alone_and_by_its_own_number(zeus, device, index, monkeypatch):
    made = []
    monkeypatch.setattr(zeus, "ZeusMonitor", lambda **options: made.append(ZeusMonitor(**options)) or made[0])
    meter = find_meter(Bench(device, torch.bfloat16, 1, "wall"))
    assert meter.joules(lambda: None) == meter.joules(lambda: None) == 3.0
    assert made[0].gpu_indices == [index]
    assert "Zeus" in meter.source


def test_a_gpu_that_zeus_cannot_read_has_no_meter_and_says_why(zeus, monkeypatch):
    assert find_meter(Bench("cuda:7")) == NoMeter("Zeus cannot read this GPU (No GPUs available.)")  # a MIG slice, say

    def unsupported(self, key, sync_execution=True):
        raise ZeusBaseError("Not Supported")

    monkeypatch.setattr(ZeusMonitor, "begin_window", unsupported)
    assert find_meter(Bench("cuda:0")) == NoMeter("Zeus cannot read this GPU (Not Supported)")


def test_without_the_package_or_with_another_one_of_its_name_there_is_no_meter(zeus, monkeypatch):
    monkeypatch.delitem(sys.modules, "zeus.monitor")
    monkeypatch.delitem(sys.modules, "zeus.exception")
    assert "zeus of ml.energy is not installed" in find_meter(Bench("cuda:0")).why  # `zeus` is there: zeus-mcmc's
    monkeypatch.setitem(sys.modules, "zeus", None)
    assert "zeus of ml.energy is not installed" in find_meter(Bench("cuda:0")).why


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
