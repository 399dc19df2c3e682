"""Milliseconds a generated token of sub-networks, measured where the checkpoint is used; travels inside it.

What runs is the elastic model itself: slices of the shared weights, not networks cut out (`llmnas.evaluate.measure`
times those). Disturbances only add, so networks take turns and the lower quartile counts.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from llmnas.cost.device import processor
from llmnas.space.architecture import Architecture
from llmnas.supernet.model import Transformer

_ROUNDS_AT_LEAST = 5


def fingerprint(model: Transformer) -> dict[str, str | int]:
    """What a latency depends on besides the network: device, cores, threads, type of numbers, torch."""
    where = model.embedding.weight
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "device": torch.cuda.get_device_name(where.device) if where.is_cuda else processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "dtype": str(where.dtype).removeprefix("torch."),
        "torch": torch.__version__,
    }


@torch.inference_mode()
def decode_ms(
    model: Transformer,
    archs: Sequence[Architecture],
    context: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Time to read one token after `context - 1` others and score the next one, one sequence.

    Args:
        model: the weights.
        archs: in the order of the result.
        context: tokens of the text, at least 1.
        seconds: about how long to measure in all; every network is timed five times at least.
        clock: seconds that have passed.
    """
    passes = [_decoder(model, arch, context) for arch in archs]
    for one in passes:
        one()
    rounds: list[list[float]] = []
    began = clock()
    while len(rounds) < _ROUNDS_AT_LEAST or clock() - began < seconds:
        row = []
        for one in passes:
            started = clock()
            one()
            row.append(1e3 * (clock() - started))
        rounds.append(row)
    return [statistics.quantiles(times, n=4)[0] for times in zip(*rounds, strict=True)]


def _decoder(model: Transformer, arch: Architecture, context: int) -> Callable[[], Any]:
    device = model.embedding.weight.device
    tokens = (torch.arange(context, device=device) % model.base.vocab_size)[None]
    cache = model.new_cache(arch, 1, context)
    if context > 1:
        model.run(tokens[:, :-1], arch, cache=cache)
    mark, last, head = cache.mark(), tokens[:, -1:], model.head_weight(arch)

    def one() -> None:
        cache.back_to(mark)
        hidden, _ = model.run(last, arch, cache=cache)
        F.linear(hidden[:, -1], head)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    return one
