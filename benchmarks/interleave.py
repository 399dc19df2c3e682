"""Timing that survives a shared machine: variants in turn, medians of paired ratios, and where it was measured."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
Variants = dict[str, Callable[[], Any]]
Times = dict[str, list[float]]


def interleave(variants: Variants, repeats: int, clock: str, warm: int = 2) -> Times:
    """Seconds of every call: A B C, then again from another starting point, so that none is always the first."""
    now = CLOCKS[clock]
    for _ in range(warm):
        for call in variants.values():
            call()
    times: Times = {name: [] for name in variants}
    names = list(variants)
    for i in range(repeats):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            begin = now()
            variants[name]()
            times[name].append(now() - begin)
    return times


def ratio(times: Times, over: str, under: str) -> dict[str, float]:
    """Median of the ratios of calls that were next to each other, with their quartiles."""
    ratios = sorted(a / b for a, b in zip(times[over], times[under], strict=True))
    return {"median": median(ratios), "low": ratios[len(ratios) // 4], "high": ratios[(3 * len(ratios)) // 4]}


def peak_rss_mib() -> float:
    """Peak resident memory of this process (VmHWM: unlike ru_maxrss, it does not start at a parent's peak)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM: peak memory is measured on Linux only")


def import_cpu(module: str, repeats: int) -> dict[str, float]:
    """CPU milliseconds of importing a module in a fresh process, beyond those of an empty program (medians)."""

    def cpu(code: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3

    pairs = [(cpu(f"import {module}"), cpu("pass")) for _ in range(repeats)]
    return {"import_ms": median(a - b for a, b in pairs), "python_ms": median(b for _, b in pairs)}


def machine() -> str:
    """Cores and vector width, without the model's or the host's name."""
    flags: set[str] = set()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(("flags", "Features")):
            flags = set(line.split(":", 1)[1].split())
            break
    vector = next(
        (name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2"), ("asimd", "NEON")) if flag in flags), ""
    )
    return ", ".join(
        filter(None, [f"{len(os.sched_getaffinity(0))} cores", platform.machine().replace("_", "-"), vector])
    )


def environment(clock: str, packages: tuple[str, ...]) -> dict[str, Any]:
    """What a figure depends on."""
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return {
        "device": machine(),
        "python": platform.python_version(),
        "versions": versions,
        "threads": torch.get_num_threads(),
        "clock": clock,
        "load_average": os.getloadavg(),
    }
