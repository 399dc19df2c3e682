"""Measuring on this device: how long one pass of a stand-alone network takes.

A pass is what a server does: `prefill` reads the whole context into an empty cache and scores the next token;
`decode` reads one more token after context - 1 others that stand in the cache, and scores the next one.

What the clock shows is the work plus what disturbs it, and disturbances only add. So networks are timed
in turn, round after round in a new order, each right after a pass that is not timed; reported are the
lower quartile over rounds and the median. On a machine that others use, one thread's own CPU time
leaves out the time it waited for a core, but not what a shared cache and memory cost.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from llmnas.cost import Workload, count_params
from llmnas.cost.device import available_cores, processor
from llmnas.cost.latency import BlockTable, Phase, assemble, design
from llmnas.errors import UserError
from llmnas.rng import generator, torch_seed
from llmnas.space import Architecture, BaseModel, SearchSpace
from llmnas.supernet import Transformer, pack, packable, stand_alone_shape

Clock = Literal["wall", "cpu"]
Pass = Callable[[], object]

_ROUNDS_AT_LEAST = 4
_ROUNDS_AT_MOST = 60
_GROUP_VALUES = 250_000_000  # parameters held at once while many networks are timed in turn


class Timing(NamedTuple):
    """Milliseconds of one pass.

    Attributes:
        ms: lower quartile over rounds.
        median_ms: median over rounds.
        noise: relative difference between the lower quartiles of even and odd rounds.
        rounds: how many there were.
    """

    ms: float
    median_ms: float
    noise: float
    rounds: int


class Bench(NamedTuple):
    """How this device is used while it is measured.

    Attributes:
        device: of torch.
        dtype: of weights and cache.
        threads: of torch on the CPU.
        clock: `cpu` is the calling thread's own time: only for one thread on the CPU.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    threads: int = 1
    clock: Clock = "cpu"

    @property
    def fingerprint(self) -> dict[str, str | int]:
        """What a measured number depends on besides the network: processor, cores, threads, dtype, library, clock."""
        name = processor() if self.device == "cpu" else torch.cuda.get_device_name(self.device)
        return {
            "device": name, "cores": available_cores(), "threads": self.threads,
            "torch": torch.__version__, "dtype": str(self.dtype).removeprefix("torch."), "clock": self.clock,
        }  # fmt: skip


def this_device(threads: int = 1) -> Bench:
    """The GPU in half precision where there is one, else the CPU: one thread by its own clock, several by the wall's.

    Raises:
        UserError: more threads than this process may use cores.
    """
    cores = available_cores()
    if not 1 <= threads <= cores:
        raise UserError(f"hardware.threads must be between 1 and the {cores} cores of this process, got {threads}")
    if torch.cuda.is_available():
        return Bench("cuda", torch.bfloat16, threads, "wall")
    return Bench("cpu", torch.float32, threads, "cpu" if threads == 1 else "wall")


@contextlib.contextmanager
def using(bench: Bench) -> Iterator[None]:
    """Set torch's threads for a measurement, and give them back."""
    before = torch.get_num_threads()
    torch.set_num_threads(bench.threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def make_pass(arch: Architecture, base: BaseModel, phase: Phase, workload: Workload, bench: Bench) -> Pass:
    """A stand-alone network of the architecture with fresh weights, ready to run its pass again and again.

    Low-bit weights are packed as they are for use, wherever their sizes can be: the latent ones of training would be
    quantised again in every pass.
    """
    rope_dim = base.rope_dim or max(spec.head_dim for _, spec in arch.kept)
    model = Transformer(stand_alone_shape(base, rope_dim, arch)).to(bench.device, bench.dtype).eval()
    model = pack(model) if packable(model) else model
    network, head = model.envelope, model.head_weight(model.envelope)
    context = workload.tokens(base)
    seed = torch.Generator().manual_seed(torch_seed(0, "measured tokens"))
    tokens = torch.randint(base.vocab_size, (workload.batch, context), generator=seed).to(bench.device)
    cache = model.new_cache(network, workload.batch, context)
    kept = 0 if phase == "prefill" else context - 1
    if kept:
        with torch.inference_mode():
            model.hidden_states(tokens[:, :kept], network, cache=cache)
    read, begin = tokens[:, kept:], cache.mark()

    def one_pass() -> torch.Tensor:
        cache.back_to(begin)
        return F.linear(model.hidden_states(read, network, cache=cache)[:, -1], head)

    return one_pass


def time_passes(passes: Sequence[Pass], bench: Bench, seconds: float, most: int = _ROUNDS_AT_MOST) -> list[Timing]:
    """Time every pass in turn, for about `seconds` in all: at least 4 rounds, at most `most`."""
    with using(bench):
        began = time.perf_counter()
        for one_pass in passes:  # warm up
            one_pass()
        rows: list[list[float]] = []
        while len(rows) < most and (len(rows) < _ROUNDS_AT_LEAST or time.perf_counter() - began < seconds):
            row = [0.0] * len(passes)
            for i in generator(len(rows), "measuring order").permutation(len(passes)):
                passes[i]()
                row[i] = _timed(passes[i], bench)
            rows.append(row)
    times = 1e3 * np.array(rows)
    quarter, even, odd = (np.percentile(part, 25, axis=0) for part in (times, times[::2], times[1::2]))
    noise = 2 * np.abs(even - odd) / (even + odd)
    middle = np.median(times, axis=0)
    return [Timing(float(quarter[i]), float(middle[i]), float(noise[i]), len(rows)) for i in range(len(passes))]


def _timed(one_pass: Pass, bench: Bench) -> float:
    if bench.device != "cpu":
        torch.cuda.synchronize(bench.device)
    clock = time.thread_time if bench.clock == "cpu" else time.perf_counter
    began = clock()
    one_pass()
    if bench.device != "cpu":
        torch.cuda.synchronize(bench.device)
    return clock() - began


def measure_latency(
    archs: Sequence[Architecture], base: BaseModel, phase: Phase, workload: Workload, bench: Bench, seconds: float
) -> list[Timing]:
    """Time architectures on this device, interleaved, for about `seconds` in all."""
    found: list[Timing] = []
    groups = _groups(archs, base)
    for group in groups:
        passes = [make_pass(arch, base, phase, workload, bench) for arch in group]
        found += time_passes(passes, bench, seconds / len(groups))
    return found


def _groups(archs: Sequence[Architecture], base: BaseModel) -> list[list[Architecture]]:
    """In order, as many at once as fit in memory."""
    groups: list[list[Architecture]] = []
    held = 0
    for arch in archs:
        size = count_params(arch, base).total
        if not groups or held + size > _GROUP_VALUES:
            groups.append([])
            held = 0
        groups[-1].append(arch)
        held += size
    return groups


def measure_table(
    space: SearchSpace, phase: Phase, workload: Workload, bench: Bench, seconds: float = 120.0
) -> BlockTable:
    """Measure the block table of a space on this device in about `seconds`."""
    began = time.perf_counter()
    plan = design(space)
    stacks = plan.stacks()
    timings = measure_latency(stacks, space.base, phase, workload, bench, seconds)
    ms = {arch: timing.ms for arch, timing in zip(stacks, timings, strict=True)}
    noise = float(np.mean([timing.noise for timing in timings]))
    spent = time.perf_counter() - began
    return assemble(plan, ms, bench.fingerprint, phase, workload, space.base, noise, spent)
