"""Does the controller keep a latency while other processes take the cores, and what does that cost in loss?

    llmnas export CONFIG --elastic
    python benchmarks/elastic_load.py FOLDER

FOLDER is what the export printed. Three phases: quiet, busy processes on every core, quiet again. Texts of the
controller and of the largest network alone take turns; time is wall time, since what others take is the point.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

import torch
from interleave import environment
from rich.console import Console
from rich.table import Table

from llmnas.export.modeling_llmnas import LlmnasForCausalLM
from llmnas.export.stopwatch import decode_ms
from llmnas.files import write_json
from llmnas.serve.adaptive import Controller, Trace, draw, generate, ladder

HERE = Path(__file__).parent
BUSY = "print(flush=True)\nwhile True: pass"
PHASES = (("quiet", False), ("busy", True), ("quiet again", False))


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Processes that do nothing but compute, from when all of them run."""
    started = [subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) for _ in range(processes)]
    try:
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in started:
            process.kill()
            process.communicate()


def figures(traces: list[Trace], rungs: list[Any], target_ms: float) -> dict[str, Any]:
    """Milliseconds a token, and what the tokens were scored by; without the prompts and texts that were read again."""
    ms = [t for trace in traces for i, t in enumerate(trace.ms) if i and i not in trace.read_again]
    used = [rung for trace in traces for rung in trace.rungs]
    return {
        "tokens": len(used),
        "mean_ms": mean(ms),
        "median_ms": median(ms),
        "p95_ms": quantiles(ms, n=20)[-1],
        "within_target": mean(t <= target_ms for t in ms),
        "mean_layers": mean(rungs[rung].arch.depth for rung in used),
        "mean_val_loss": mean(rungs[rung].metrics["val_loss"] for rung in used),
        "changes": sum(trace.changes for trace in traces),
        "read_again": sum(len(trace.read_again) for trace in traces),
    }


def measured(model: LlmnasForCausalLM, slack: float, tokens: int, processes: int) -> dict[str, Any]:
    """Both ways in every phase; the target is `slack` times the mean wall time of the largest network at first."""
    longest = int(model.config.max_position_embeddings)
    found = [one.arch for one in model.subnetworks]
    # CPU time: what a token takes with a core to itself, whatever runs beside
    alone = decode_ms(model.model, found, longest, 5.0, clock=time.process_time)
    ms = {arch.id: each for arch, each in zip(found, alone, strict=True)}
    rungs = ladder(model.subnetworks, ms, {})
    times, archs = [ms[one.id] for one in rungs], [one.arch for one in rungs]
    prompts = torch.randint(model.config.vocab_size, (64, 1, 4), generator=torch.Generator().manual_seed(0))
    first = [
        generate(
            model, prompts[i], archs[-1:], Controller(times[-1:], 1.0), tokens=longest - 4, next_token=draw(1.0, i)
        )[1]
        for i in range(4)
    ]
    target = slack * figures(first, rungs[-1:], 1.0)["mean_ms"]
    ways = {"controller": (rungs, archs, Controller(times, target)), "largest alone": (
        rungs[-1:], archs[-1:], Controller(times[-1:], target)
    )}  # fmt: skip
    rows = []
    for name, loaded in PHASES:
        traces: dict[str, list[Trace]] = {way: [] for way in ways}
        with busy(processes) if loaded else contextlib.nullcontext():
            for i in itertools.count():
                if min(sum(len(t.ms) for t in found) for found in traces.values()) >= tokens:
                    break
                for way, (_, members, controller) in ways.items():
                    _, trace = generate(
                        model, prompts[i % 64], members, controller, tokens=longest - 4, next_token=draw(1.0, i)
                    )
                    traces[way].append(trace)
        rows += [
            {"phase": name, "way": way, **figures(traces[way], ladder_, target)}
            for way, (ladder_, _, _) in ways.items()
        ]
    return {"target_ms": target, "busy_processes": processes, "tabled_ms": times, "phases": rows}


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description="a target latency under load")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slack", type=float, default=1.5)
    parser.add_argument("--tokens", type=int, default=4000, help="of each way in each phase, at least")
    parser.add_argument("--processes", type=int, default=2 * (os.cpu_count() or 1))
    parser.add_argument("--json", type=Path, default=HERE / "results" / "elastic_load.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = LlmnasForCausalLM.from_pretrained(args.folder).eval()
    found = measured(model, args.slack, args.tokens, args.processes)
    table = Table("phase", "way", "mean ms", "median", "95 %", "within", "layers", "val loss", "changes")
    for row in found["phases"]:
        table.add_row(
            row["phase"], row["way"], f"{row['mean_ms']:.2f}", f"{row['median_ms']:.2f}", f"{row['p95_ms']:.2f}",
            f"{row['within_target']:.0%}", f"{row['mean_layers']:.1f}", f"{row['mean_val_loss']:.3f}",
            str(row["changes"]),
        )  # fmt: skip
    Console(width=110).print(table)
    print(f"target {found['target_ms']:.2f} ms, {found['busy_processes']} busy processes")
    write_json(args.json, {"environment": environment("wall", ("torch", "transformers")), **found})


if __name__ == "__main__":
    main()
