"""Measured energy: Zeus (NVML) for a GPU, RAPL counters for the CPU; where neither can be read, nothing is measured.

RAPL counts the whole package (and memory where it is a zone of its own): other programs and idle power are
inside the figure, so it is only worth something on a quiet machine.
"""

from __future__ import annotations

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


class NoMeter(NamedTuple):
    """`why` nothing measures energy here, in words."""

    why: str


def find_meter(bench: Bench, powercap: Path = _POWERCAP) -> Meter | NoMeter:
    """The meter of this device, or why there is none that may be read."""
    if bench.device != "cpu":
        return _zeus_meter(bench)
    zones = rapl_zones(powercap)
    try:
        for zone in zones:
            _counter(zone)
    except OSError as error:  # since 2020 the kernel lets root alone read them; not all of them would be too little
        return NoMeter(f"a RAPL counter cannot be read ({type(error).__name__}: {error})")
    if not zones:
        return NoMeter(f"no RAPL counters in {powercap}")
    return Meter(f"RAPL, {len(zones)} zones, whole machine", lambda work: _rapl_joules(zones, work))


def rapl_zones(powercap: Path = _POWERCAP) -> list[Path]:
    """Packages and their memory (`powercap` of the Linux kernel; what is inside of a package is counted with it)."""
    names = {zone: zone / "name" for zone in sorted(powercap.glob("intel-rapl:*"))}
    return [
        zone
        for zone, name in names.items()
        if name.is_file() and name.read_text().strip().startswith(("package", "dram"))
    ]


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


def _zeus_meter(bench: Bench) -> Meter | NoMeter:
    """Zeus counts GPUs as torch does, and waits for them before it reads (zeus 0.11 to 0.16)."""
    try:
        from zeus.exception import ZeusBaseError  # an extra that needs a GPU
        from zeus.monitor import ZeusMonitor
    except ImportError as error:  # zeus-mcmc installs a module of that name too
        return NoMeter(f"the package zeus of ml.energy is not installed ({error})")
    index = torch.device(bench.device).index

    def joules(work: Callable[[], None]) -> float:
        monitor.begin_window("pass")
        work()
        return float(monitor.end_window("pass").total_energy)

    try:
        monitor = ZeusMonitor(gpu_indices=[torch.cuda.current_device() if index is None else index], cpu_indices=[])
        joules(lambda: None)
    except (ValueError, ZeusBaseError) as error:  # no NVML, a slice of a GPU (MIG), a counter that it does not have
        return NoMeter(f"Zeus cannot read this GPU ({error})")
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
