"""Measured energy: Zeus (NVML) for a GPU, RAPL counters for the CPU; where neither can be read, nothing is measured.

RAPL counts the whole package (and memory where it is a zone of its own): other programs and idle power are
inside the figure, so it is only worth something on a quiet machine.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from llmnas.cost import Workload
from llmnas.cost.latency import Phase
from llmnas.errors import RunError
from llmnas.evaluate.measure import Bench, Pass, make_pass, time_passes, using
from llmnas.space import Architecture, BaseModel

_POWERCAP = Path("/sys/class/powercap")
_WINDOW = (
    0.5  # seconds that a measured pass is repeated for: counters move about every millisecond (RAPL) to 100 (NVML)
)


class Meter(NamedTuple):
    """A way to measure energy.

    Attributes:
        source: what reads it, in words.
        joules: runs a function and returns what was used meanwhile.
    """

    source: str
    joules: Callable[[Callable[[], None]], float]


def find_meter(bench: Bench, powercap: Path = _POWERCAP) -> Meter | None:
    """The meter of this device, or None where there is none that may be read."""
    if bench.device != "cpu":
        return _zeus_meter(bench)
    zones = rapl_zones(powercap)
    if not zones:
        return None
    return Meter(f"RAPL, {len(zones)} zones, whole machine", lambda work: _rapl_joules(zones, work))


def rapl_zones(powercap: Path = _POWERCAP) -> list[Path]:
    """Packages and their memory, whose counters this process may read (`powercap` of the Linux kernel)."""
    zones = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        name = zone / "name"
        if name.is_file() and name.read_text().strip().startswith(("package", "dram")):
            try:
                _counter(zone)
            except PermissionError:
                continue
            zones.append(zone)
    return zones


def _counter(zone: Path) -> int:
    """Microjoules."""
    return int((zone / "energy_uj").read_text())


def _rapl_joules(zones: Sequence[Path], work: Callable[[], None]) -> float:
    """Counters go round: one that ends below its beginning has passed its range once."""
    before = [_counter(zone) for zone in zones]
    work()
    used = 0
    for zone, begin in zip(zones, before, strict=True):
        end = _counter(zone)
        used += end - begin if end >= begin else end - begin + int((zone / "max_energy_range_uj").read_text())
    return used / 1e6


def _zeus_meter(bench: Bench) -> Meter | None:
    if importlib.util.find_spec("zeus") is None:
        return None
    from zeus.monitor import ZeusMonitor  # an extra that needs a GPU

    index = torch.device(bench.device).index
    monitor = ZeusMonitor(gpu_indices=[torch.cuda.current_device() if index is None else index], cpu_indices=[])

    def joules(work: Callable[[], None]) -> float:
        monitor.begin_window("pass")
        work()
        return float(monitor.end_window("pass").total_energy)

    return Meter("Zeus (NVML), the GPU alone", joules)


def measure_energy(
    archs: Sequence[Architecture], base: BaseModel, phase: Phase, workload: Workload, bench: Bench, meter: Meter,
    window: float = _WINDOW,
) -> list[float]:  # fmt: skip
    """Joules of one pass of each architecture, from about `window` seconds of passes.

    Raises:
        RunError: the counter did not move: a zero would be taken for a measurement.
    """
    found = []
    for arch in archs:
        one_pass = make_pass(arch, base, phase, workload, bench)
        timing = time_passes([one_pass], bench, window / 4, most=10)[0]
        count = max(1, round(1e3 * window / timing.median_ms))
        with using(bench):
            joules = meter.joules(lambda one_pass=one_pass, count=count: _repeat(one_pass, count))  # type: ignore[misc]
        if not joules > 0:
            raise RunError(f"energy of {arch.id}: {meter.source} counted {joules} J over {count} passes")
        found.append(joules / count)
    return found


def _repeat(one_pass: Pass, count: int) -> None:
    for _ in range(count):
        one_pass()
