"""Experts divided between two processes against plain data parallelism of the same network, at an equal batch.

    deepspeed --no_local_rank --num_gpus 2 benchmarks/expert_parallel.py [--steps 12] [--json FILE]

Both are trained by turns in the same processes, one step each, on the same text: the ratio is the median over turns of
the CPU time of both processes together (wall time beside it, which means little on a busy machine). The bytes are
those of weights, gradients and AdamW's two moments that a process holds. Experts are divided where they do not fit,
so this says what it costs, not that it is faster.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from interleave import environment
from throughput import bytes_of_python

from llmnas.files import write_json
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec
from llmnas.train.balance import Balance
from llmnas.train.engine import Engine, Processes, build, start_processes
from llmnas.train.settings import TrainSettings
from llmnas.train.trainer import train_step

RESULTS = Path(__file__).parent / "results" / "expert_parallel.json"
SIZE = {"hidden": 128, "layers": 4, "ffn": 256, "vocab": 512, "batch": 16, "seq": 128}
VARIANTS = {"data": 1, "expert": 2}
COPIES = 4  # a weight, its gradient, two moments


def network(experts: int, top_k: int) -> FixedShape:
    """All layers alike."""
    spec = LayerSpec(4, 1, 32, SIZE["ffn"], experts=experts, top_k=top_k)
    base = BaseModel(vocab_size=SIZE["vocab"], max_seq=SIZE["seq"])
    return FixedShape(base, Architecture(SIZE["hidden"], (spec,) * SIZE["layers"]))


def stepper(shape: FixedShape, parallel: int, processes: Processes) -> tuple[Callable[[int], None], int]:
    """An optimizer step by its number, and the bytes that this process holds."""
    moe = {"balance": "bias", "expert_parallel": parallel}
    settings = TrainSettings(steps=1000, batch_size=SIZE["batch"], seq_len=SIZE["seq"], threads=1, moe=moe)
    model = build(shape, 0, settings, processes)
    engine = Engine(model, settings, processes)
    sequences, balance = bytes_of_python(SIZE), Balance(model, settings.moe)
    held = COPIES * sum(parameter.nbytes for parameter in model.parameters())

    def step(number: int) -> None:
        train_step(engine, [shape.envelope], sequences, settings, number, balance)

    return step, held


def row(experts: int, top_k: int, steps: int, processes: Processes) -> dict[str, Any]:
    """Both variants by turns, figures over all processes."""
    shape = network(experts, top_k)
    variants = {name: stepper(shape, parallel, processes) for name, parallel in VARIANTS.items()}
    times: dict[str, list[list[float]]] = {name: [] for name in VARIANTS}
    for number in range(steps + 1):  # the first turn warms up
        for name, (step, _) in variants.items():
            dist.barrier()
            cpu, wall = time.process_time(), time.perf_counter()
            step(number)
            spent = torch.tensor([time.process_time() - cpu, time.perf_counter() - wall], dtype=torch.float64)
            dist.all_reduce(spent)
            if number:
                times[name].append([float(spent[0]), float(spent[1]) / processes.size])
    found: dict[str, Any] = {"experts": experts, "top_k": top_k, "steps": steps, "processes": processes.size}
    for i, clock in enumerate(("cpu", "wall")):
        data, expert = ([turn[i] for turn in times[name]] for name in VARIANTS)
        found[f"{clock}_data_s"] = statistics.median(data)
        found[f"{clock}_ratio"] = statistics.median(b / a for a, b in zip(data, expert, strict=True))
    return {**found, "bytes": {name: held for name, (_, held) in variants.items()}}


def main() -> None:
    """Measure, print and write, on the first process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    processes = start_processes()
    rows = [row(experts, top_k, arguments.steps, processes) for experts, top_k in ((8, 1), (8, 2), (32, 2))]
    if processes.rank == 0:
        for found in rows:
            print(found, flush=True)
        write_json(arguments.json, {"environment": environment("cpu", ("torch", "deepspeed")), "rows": rows})


if __name__ == "__main__":
    main()
