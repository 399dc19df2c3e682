"""Latency tables: measured once on a device, then taken by every run that needs the same one.

A run folder holds the table that its search uses, so that a search goes on with the numbers that it began with. What
was measured is also kept for the device, outside of run folders: `LLMNAS_CACHE`, else the user's cache folder.
"""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from pathlib import Path

from platformdirs import user_cache_path

from llmnas.config import Config, HardwareConfig
from llmnas.cost import Workload
from llmnas.cost.correction import Corrected
from llmnas.cost.latency import FORMAT, BlockTable, Phase, design
from llmnas.evaluate.measure import Bench, measure_latency, measure_table, this_device
from llmnas.files import sha256
from llmnas.rng import generator
from llmnas.runs import RunFolder, identity

_CORRECTION_SECONDS = 0.5  # a measured network, where the table is corrected
_LOG = logging.getLogger(__name__)


def device_tables() -> Path:
    """The folder of the tables that were measured on this device, whichever run they were measured for."""
    own = os.environ.get("LLMNAS_CACHE")
    return (Path(own) if own else user_cache_path("llmnas", appauthor=False)) / "latency"


def latency_phase(config: Config, metric: str) -> Phase:
    """Of a latency metric; that of `latency_ms` is chosen by the config."""
    chosen: dict[str, Phase] = {"prefill_latency_ms": "prefill", "decode_latency_ms": "decode"}
    return chosen.get(metric, (config.hardware or HardwareConfig()).phase)


def latency_table(config: Config, run: RunFolder, phase: Phase, workload: Workload) -> tuple[BlockTable, str]:
    """The table of the run folder, that of the device, or one measured now; with a note on which it was.

    A table of the device is taken where fingerprint, phase, workload, base model, measured stacks and the seconds that
    were asked for are the same; which of the space's sizes lie between the measured ones does not matter.
    """
    options, base = config.hardware or HardwareConfig(), config.space.base
    bench, path = this_device(options.threads), run.latency_table(phase)
    if path.exists():
        return BlockTable.load(path, bench.fingerprint, phase, workload, base), ", stored"
    shared = device_tables() / _name(config, bench, phase, workload, options.seconds)
    if shared.exists():
        table = BlockTable.load(shared, bench.fingerprint, phase, workload, base)
        table.save(path, run.seal)
        return table, ", for an earlier run"
    table = measure_table(config.space, phase, workload, bench, options.seconds)
    table.save(path, run.seal)
    try:
        table.save(shared)
    except OSError as error:
        _LOG.warning("%s: not kept for other runs (%s)", shared, error.strerror)
    return table, ""


def _name(config: Config, bench: Bench, phase: Phase, workload: Workload, seconds: float) -> str:
    measured = asdict(design(config.space))
    of = identity(FORMAT, bench.fingerprint, asdict(workload), asdict(config.space.base), measured, seconds)
    return f"{phase}-{of}.json"


def corrected(config: Config, run: RunFolder, table: BlockTable) -> Corrected:
    """The table with what whole networks teach it: as stored in the run folder, or measured now.

    A search that is gone on with must not hold two corrections.
    """
    options = config.hardware or HardwareConfig()
    of = identity(
        sha256(run.latency_table(table.phase)), config.space.model_dump(mode="json"), config.seed, options.correction
    )
    path = run.latency_correction(table.phase, of)
    if path.exists():
        return Corrected.load(path, table)
    rng = generator(config.seed, "latency correction")
    archs = list(dict.fromkeys(config.space.sample(rng) for _ in range(options.correction)))
    seconds = _CORRECTION_SECONDS * len(archs)
    bench = this_device(options.threads)
    timings = measure_latency(archs, config.space.base, table.phase, table.workload, bench, seconds)
    found = Corrected.fit(table, archs, [timing.ms for timing in timings])
    found.save(path, run.seal)
    return found
