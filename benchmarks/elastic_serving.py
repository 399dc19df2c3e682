"""What an elastic checkpoint costs to switch and how fast its sub-networks decode on this device.

    llmnas export CONFIG --elastic
    python benchmarks/elastic_serving.py FOLDER

FOLDER is what the export printed. Time is CPU time of one thread where it is of passes; a switch is timed alone.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from interleave import environment
from rich.console import Console
from rich.table import Table

from llmnas.export.modeling_llmnas import LlmnasForCausalLM
from llmnas.files import write_json

HERE = Path(__file__).parent


def switches(model: LlmnasForCausalLM, count: int = 2000) -> float:
    """Microseconds of `set_budget`, the median over budgets that pick each sub-network in turn."""
    budgets = [one.metrics["params"] for one in model.subnetworks]
    times = []
    for i in range(count):
        begin = time.perf_counter()
        model.set_budget(params=budgets[i % len(budgets)])
        times.append(time.perf_counter() - begin)
    return 1e6 * median(times)


def measured(model: LlmnasForCausalLM, context: int, seconds: float) -> dict[str, Any]:
    """Switching, and milliseconds a token of every sub-network."""
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    switch = switches(model)
    if addresses != [parameter.data_ptr() for parameter in model.parameters()]:
        raise RuntimeError("a switch moved weights")
    table = model.measure_latency(context, seconds)
    rows = [
        {
            "id": one.arch.id,
            "depth": one.arch.depth,
            "params": one.metrics["params"],
            "val_loss": one.metrics["val_loss"],
            "ms_a_token": table.ms[one.arch.id],
            "tokens_per_second": 1e3 / table.ms[one.arch.id],
        }
        for one in model.subnetworks
    ]
    return {"switch_us": switch, "context": context, "subnetworks": sorted(rows, key=lambda row: -row["params"])}


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description="switching and decoding of an elastic checkpoint")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "elastic_serving.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = LlmnasForCausalLM.from_pretrained(args.folder).eval()
    found = measured(model, args.context, args.seconds)
    table = Table("sub-network", "layers", "parameters", "val loss", "ms a token", "tokens a second")
    for row in found["subnetworks"]:
        table.add_row(
            row["id"], str(row["depth"]), f"{row['params']:,.0f}", f"{row['val_loss']:.3f}",
            f"{row['ms_a_token']:.2f}", f"{row['tokens_per_second']:,.0f}",
        )  # fmt: skip
    Console(width=110).print(table)
    print(f"a switch: {found['switch_us']:.1f} microseconds")
    write_json(args.json, {"environment": environment("wall", ("torch", "transformers")), **found})


if __name__ == "__main__":
    main()
