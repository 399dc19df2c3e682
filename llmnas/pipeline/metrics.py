"""The metrics of a search: which may be asked for, and who computes those that the evaluator does not."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmnas.config import HARDWARE_METRICS, METRICS, Config, HardwareConfig
from llmnas.cost.correction import Corrected
from llmnas.cost.energy import energy_model, modelled_energy_j
from llmnas.cost.latency import Phase
from llmnas.cost.roofline import gpu, roofline_ms
from llmnas.errors import UserError
from llmnas.evaluate.measure import measure_latency, this_device
from llmnas.evaluate.power import Meter, find_meter, measure_energy
from llmnas.evaluate.providers import Provider
from llmnas.files import user_path
from llmnas.pipeline.latency import corrected, latency_phase, latency_table
from llmnas.runs import RunFolder
from llmnas.space import Architecture, BaseModel

OwnMetric = Callable[[Architecture, BaseModel], float]
"""A user's metric: (architecture, what all share) -> a number."""

_MEASURE_SECONDS = 0.5  # a candidate, where every one is measured


def check_metrics(config: Config, own: Mapping[str, OwnMetric]) -> None:
    """Refuse objectives and constraints that nothing computes.

    Raises:
        UserError: with the name and all allowed ones.
    """
    for section in ("objectives", "constraints"):
        for name in getattr(config.search, section):
            if name not in METRICS and name not in own:
                mine = f", and yours: {', '.join(own)}" if own else "; one of your own: --objective file.py:function"
                raise UserError(f"search.{section}: {name} does not exist; allowed: {', '.join(METRICS)}{mine}")
    clash = sorted(set(own) & set(METRICS))
    if clash:
        raise UserError(f"--objective: {clash[0]} is a metric of llmnas; give your function another name")


def own_metric(text: str) -> tuple[str, str, OwnMetric]:
    """Read `file.py:function` or `file.py:function=max`: (name, direction or "", function). Runs the file.

    Raises:
        UserError: another form, no such file or function, or the file does not run.
    """
    place, _, direction = text.partition("=")
    path, colon, name = place.rpartition(":")
    if not colon or not name.isidentifier() or direction not in {"", "min", "max"}:
        raise UserError(f"--objective {text}: must read file.py:function, with =min or =max behind it if you like")
    path = str(user_path(path))
    if not Path(path).is_file():
        raise UserError(f"--objective {text}: {path}: no such file")
    spec = importlib.util.spec_from_file_location(f"llmnas_objective_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--objective {text}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # noqa: BLE001 (the user's code may raise anything)
        raise UserError(f"--objective {text}: {path} does not run: {type(error).__name__}: {error}") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"--objective {text}: {path} has no function {name}")
    return name, direction, function


def with_own(config: Config, own: Sequence[tuple[str, str, OwnMetric]]) -> Config:
    """The config with every own metric that it does not mention as an objective.

    Raises:
        UserError: one name for two functions, or another direction than the config's.
    """
    named = {**config.search.objectives, **config.search.constraints}
    names = [name for name, _, _ in own]
    for name, direction, _ in own:
        if names.count(name) > 1:
            raise UserError(f"--objective: two functions are called {name}; give one of them another name")
        if direction and config.search.objectives.get(name, direction) != direction:
            raise UserError(f"--objective: {name}={direction}, but search.objectives.{name} is the other direction")
    more = {name: direction or "min" for name, direction, _ in own if name not in named}
    values = config.model_dump(mode="json")
    values["search"]["objectives"] |= more
    return Config.model_validate(values) if more else config


def providers(config: Config, run: RunFolder, own: Mapping[str, OwnMetric]) -> list[Provider]:
    """One for every metric that the search asks for and the evaluator lacks; measures the latency table if need be."""
    asked = [*config.search.objectives, *(n for n in config.search.constraints if n not in config.search.objectives)]
    made = []
    for name in asked:
        if name in own:
            made.append(_own_provider(name, own[name], config.space.base))
        elif name == "energy_j":
            made.append(_energy(config))
        elif name in HARDWARE_METRICS:
            made.append(_latency(config, run, name))
    return made


def measured_on(config: Config, metrics: Iterable[str]) -> dict[str, Any]:
    """What decides the latency and energy among these metrics, as plain values; empty where none is among them.

    Numbers of two devices must not meet in one archive. What does not change a number is left out: a model of energy
    is the same on every machine.
    """
    asked = set(metrics) & set(HARDWARE_METRICS)
    if not asked:
        return {}
    options = config.hardware or HardwareConfig()
    found: dict[str, Any] = {"device": options.device}
    if asked & {"latency_ms", "energy_j"}:
        found["phase"] = options.phase
    if options.device == "this":
        bench = this_device(options.threads)
        measured = asked != {"energy_j"}
        if measured:
            found |= {"method": options.method or "table", "correction": options.correction}
        if "energy_j" in asked:
            meter = find_meter(bench)
            found["meter"] = meter.source if isinstance(meter, Meter) else "none"
            measured |= isinstance(meter, Meter)
        if measured:
            found["machine"] = bench.fingerprint
    return {"hardware": found}


def _own_provider(name: str, function: OwnMetric, base: BaseModel) -> Provider:
    def values(archs: Sequence[Architecture]) -> list[float]:
        found = []
        for arch in archs:
            try:
                value: Any = function(arch, base)
                found.append(float(value) if value is not None else math.nan)
            except Exception as error:
                raise UserError(
                    f"--objective {name}: failed for {arch.to_json()}: {type(error).__name__}: {error}"
                ) from error
        return found

    return Provider(name, values, "the user's function")


def _latency(config: Config, run: RunFolder, metric: str) -> Provider:
    options, base, workload = config.hardware or HardwareConfig(), config.space.base, config.budget.workload
    phase = latency_phase(config, metric)
    what = f"{phase}, batch {workload.batch}, context {workload.tokens(base)}"
    if options.device != "this":
        device = gpu(options.device)
        source = f"{what}: an ESTIMATE, the roofline of {options.device} ({device.source}), no measurement"
        return Provider(metric, lambda archs: [roofline_ms(a, base, workload, phase, device) for a in archs], source)
    bench = this_device(options.threads)
    where = f"on {bench.fingerprint['device']}, {bench.threads} thread(s), {bench.fingerprint['dtype']}"
    if options.method == "measure":
        noise: list[float] = []

        def measured(archs: Sequence[Architecture]) -> list[float]:
            timings = measure_latency(archs, base, phase, workload, bench, _MEASURE_SECONDS * len(archs))
            noise.extend(timing.noise for timing in timings)
            return [timing.ms for timing in timings]

        return Provider(metric, measured, f"{what}: measured {where}, lower quartile over rounds", noise)
    table, note = latency_table(config, run, phase, workload)
    source = f"{what}: sum of a block table measured {where}, noise {table.noise:.1%}{note}"
    predictor = corrected(config, run, table) if options.correction else table
    if isinstance(predictor, Corrected):
        source += f", corrected on {options.correction} networks (left-out error {predictor.error:.1%})"
    return Provider(metric, lambda archs: [predictor.latency_ms(arch) for arch in archs], source)


def _energy(config: Config) -> Provider:
    options, base, workload = config.hardware or HardwareConfig(), config.space.base, config.budget.workload
    phase: Phase = options.phase
    what = f"joules of one pass ({phase}, batch {workload.batch}, context {workload.tokens(base)})"
    device = None if options.device == "this" else gpu(options.device)
    why = ""
    if device is None:
        bench = this_device(options.threads)
        meter = find_meter(bench)
        if isinstance(meter, Meter):
            return Provider(
                "energy_j",
                lambda archs: measure_energy(archs, base, phase, workload, bench, meter),
                f"{what}: measured with {meter.source}",
            )
        why = f"; {meter.why}"
    return Provider(
        "energy_j",
        lambda archs: [modelled_energy_j(a, base, workload, phase, device) for a in archs],
        f"{what}: an ESTIMATE from {energy_model(device)}{why}",
    )
