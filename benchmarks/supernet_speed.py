"""What elasticity costs: supernet against stand-alone models and transformers, side by side in one run.

    python benchmarks/supernet_speed.py            # `make bench`; --quick takes less than a minute
    python benchmarks/supernet_speed.py --clock cpu --threads 1   # where other programs share the machine

Every ratio is the median of ratios of calls made in turn. `--clock cpu` counts the CPU time of this one process instead
of wall time. Memory is the peak of a child process for each variant. Text: the bytes of Python's standard library.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from interleave import CLOCKS, environment, import_cpu, interleave, peak_rss_mib, ratio
from rich.console import Console
from rich.table import Table

from llmnas import Architecture, Budget, LayerSpec, SearchSpace, count_params
from llmnas.cost import BudgetSampler, Workload
from llmnas.data import Sequences, read_corpus
from llmnas.evaluate.evaluator import Evaluator
from llmnas.evaluate.quality import window_losses
from llmnas.files import write_json
from llmnas.supernet import Losses, Transformer, extract

HERE = Path(__file__).parent
FULL: dict[str, Any] = {"hidden": 256, "layers": 8, "kv": 4, "ffn": 1024, "vocab": 4096, "batch": 8, "seq": 256}
QUICK: dict[str, Any] = {"hidden": 64, "layers": 2, "kv": 2, "ffn": 192, "vocab": 512, "batch": 2, "seq": 64}
AIMS = {"sub-network": 1.05, "sandwich": 1.08, "transformers": 1.0}


def space(size: dict[str, Any]) -> SearchSpace:
    """Everything per layer: the worst case for slicing."""
    steps = [2, 3, 4]  # quarters of the largest size
    return SearchSpace.model_validate(
        {
            "base": {"vocab_size": size["vocab"], "tied": False, "max_seq": size["seq"]},
            "layers": size["layers"],
            "hidden_size": [size["hidden"] * n // 4 for n in steps],
            "depth": list(range(size["layers"] // 2, size["layers"] + 1)),
            "kv_heads": {"choices": [size["kv"] // 2, size["kv"]], "per_layer": True},
            "queries_per_group": {"choices": [1, 2], "per_layer": True},
            "head_dim": {"choices": [16, 32], "per_layer": True},
            "ffn_size": {"choices": [size["ffn"] * n // 4 for n in steps], "per_layer": True},
        }
    )


def middle(size: dict[str, Any]) -> Architecture:
    """Three quarters of the width and of the layers, and one query a group: weights are copied at every axis."""
    spec = LayerSpec(size["kv"], 1, 32, size["ffn"] * 3 // 4)
    kept = max(1, size["layers"] * 3 // 4)
    return Architecture(size["hidden"] * 3 // 4, (spec,) * kept + (None,) * (size["layers"] - kept))


def batch(size: dict[str, Any], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets, [batch, seq] each."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(size["vocab"], (size["batch"], size["seq"] + 1), generator=generator)
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def passes(model: Transformer, archs: list[Architecture | None], data: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Forward and backward of each network, gradients added up."""
    model.zero_grad(set_to_none=True)
    for arch in archs:
        out = model(data[0], arch, targets=data[1])
        out.loss.backward()


def sub_networks(size: dict[str, Any], repeats: int, clock: str) -> dict[str, Any]:
    """Forward+backward inside the supernet / the same architecture extracted."""
    supernet, data = Transformer(space(size)), batch(size)
    chosen = {"smallest": space(size).smallest(), "middle": middle(size), "largest": space(size).largest()}
    found = {}
    for name, arch in chosen.items():
        alone = extract(supernet, arch)
        times = interleave(
            {"active": partial(passes, supernet, [arch], data), "alone": partial(passes, alone, [None], data)},
            repeats, clock,
        )  # fmt: skip
        found[name] = {"seconds_alone": median(times["alone"]), "ratio": ratio(times, "active", "alone")}
    return found


def sandwich(size: dict[str, Any], repeats: int, clock: str) -> dict[str, Any]:
    """The passes of a sandwich step / the same networks as stand-alone models, one after the other."""
    shape = space(size)
    supernet, data, rng = Transformer(shape), batch(size), np.random.default_rng(0)
    archs = [shape.largest(), shape.sample(rng), shape.sample(rng), shape.smallest()]
    alone = [extract(supernet, arch) for arch in archs]

    def parts() -> None:
        for model in alone:
            passes(model, [None], data)

    times = interleave({"sandwich": partial(passes, supernet, list(archs), data), "parts": parts}, repeats, clock)
    return {"seconds": median(times["sandwich"]), "ratio": ratio(times, "sandwich", "parts")}


def plain_step(kind: str, size: dict[str, Any]) -> Callable[[], None]:
    """A training step of the largest network, ours or transformers': forward, loss, backward, fused AdamW."""
    data = batch(size)
    model: torch.nn.Module
    if kind == "ours":
        ours = Transformer(space(size))
        model, loss = ours, lambda: ours(data[0], targets=data[1]).loss
    else:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=size["vocab"], hidden_size=size["hidden"], intermediate_size=size["ffn"],
            num_hidden_layers=size["layers"],
            num_attention_heads=2 * size["kv"], num_key_value_heads=size["kv"], head_dim=32,
            max_position_embeddings=size["seq"],
            tie_word_embeddings=False, use_cache=False,
        )  # fmt: skip
        theirs = LlamaForCausalLM(config)
        model, loss = theirs, lambda: _loss_of_theirs(theirs, data)
    expected = count_params(space(size).largest(), space(size).base).total
    if sum(parameter.numel() for parameter in model.parameters()) != expected:
        raise RuntimeError("the two models differ in size")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _loss_of_theirs(model: Any, data: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    logits = model(input_ids=data[0]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), data[1].flatten())


def against_transformers(size: dict[str, Any], repeats: int, clock: str) -> dict[str, Any]:
    """Step of the largest network, ours / transformers' Llama of the same shape."""
    kinds = {kind: plain_step(kind, size) for kind in ("ours", "transformers")}
    times = interleave(kinds, repeats, clock)
    tokens = size["batch"] * size["seq"]
    return {
        "tokens_per_second": {kind: tokens / median(seconds) for kind, seconds in times.items()},
        "ratio": ratio(times, "ours", "transformers"),
    }


def evaluation(size: dict[str, Any], steps: int, windows: int, candidates: int, clock: str) -> dict[str, Any]:
    """Cost and error of a candidate's loss from a quarter of the windows, against all of them.

    The supernet is trained for a few steps first: an untrained one finds every window equally hard. `rms_error` is the
    root mean square difference from the loss over all windows: of the regression estimate, of the plain mean of the
    same sample, and what the estimate itself states.
    """
    text = "\n".join(document.text for document in read_corpus("stdlib")[:400]).encode()
    tokens = np.frombuffer(text, dtype=np.uint8)
    shape = space({**size, "vocab": 256})
    model, rng = Transformer(shape), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), fused=True)
    cut = len(tokens) * 9 // 10
    train, held_out = Sequences(tokens[:cut], size["seq"], 0), Sequences(tokens[cut:], size["seq"], 0).fixed(windows)
    for step in range(steps):
        rows = torch.from_numpy(train.batch(step * size["batch"], size["batch"]))
        out: Losses = model(rows[:, :-1], shape.sample(rng), targets=rows[:, 1:])
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    workload = Workload(batch=1, context=size["seq"])
    evaluator = Evaluator(model, held_out, windows // 4, 1.0, workload)
    archs = [shape.sample(rng) for _ in range(candidates)]
    seconds: dict[str, list[float]] = {"all": [], "sample": []}
    errors: dict[str, list[float]] = {"regression": [], "plain_mean": [], "stated": []}
    for arch in archs:
        begin = CLOCKS[clock]()
        full = window_losses(model, arch, held_out)
        middle_of = CLOCKS[clock]()
        found = evaluator.measure(arch)
        seconds["all"].append(middle_of - begin)
        seconds["sample"].append(CLOCKS[clock]() - middle_of)
        errors["regression"].append(found["val_loss"] - full.mean())
        errors["plain_mean"].append(full[evaluator.chosen].mean() - full.mean())
        errors["stated"].append(found["val_loss_error"])
    rms = {name: float(np.sqrt(np.mean(np.square(values)))) for name, values in errors.items()}
    # windows a plain mean needs for the regression's error, with replacement left out: var / n (1 - n / N)
    spread = float(np.mean([window_losses(model, arch, held_out).var(ddof=1) for arch in archs[:4]]))
    needed = spread / (max(rms["regression"], 1e-12) ** 2 + spread / windows)
    return {
        "windows": windows,
        "sample": len(evaluator.chosen),
        "seconds_all": median(seconds["all"]),
        "seconds_sample": median(seconds["sample"]),
        "rms_error": rms,
        "windows_of_a_plain_random_mean_with_that_error": needed,
    }


def closed_forms(size: dict[str, Any], calls: int, clock: str) -> dict[str, Any]:
    """Microseconds of one parameter count and of one architecture drawn under a budget of half the largest."""
    shape = space(size)
    rng = np.random.default_rng(0)
    archs = [shape.sample(rng) for _ in range(calls)]
    now = CLOCKS[clock]
    begin = now()
    for arch in archs:
        count_params(arch, shape.base)
    counting = now() - begin
    budget = Budget(max_params=count_params(shape.largest(), shape.base).total // 2)
    begin = now()
    sampler = BudgetSampler(shape, budget)
    setup = now() - begin
    begin = now()
    drawn = [sampler.sample(rng) for _ in range(calls)]
    sampling = now() - begin
    if not all(budget.admits(shape.base, arch) for arch in drawn):
        raise RuntimeError("the sampler left its budget")
    return {
        "count_params_us": counting / calls * 1e6,
        "sample_under_budget_us": sampling / calls * 1e6,
        "sampler_setup_ms": setup * 1e3,
        "space_size": float(shape.size()),
    }


def memory(size: dict[str, Any], threads: int) -> dict[str, Any]:
    """Peak resident MiB of child processes, and what of it training adds to the imports."""
    found = {}
    for kind in ("ours", "transformers", "sandwich"):
        command = [
            sys.executable,
            __file__,
            "--child",
            kind,
            "--child-size",
            json.dumps(size),
            "--threads",
            str(threads),
        ]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[kind] = json.loads(output.splitlines()[-1])
    return found


def child(kind: str, size: dict[str, Any]) -> None:
    """Three steps of one variant in this process; prints its memory as JSON."""
    if kind == "sandwich":
        shape = space(size)
        model, rng = Transformer(shape), np.random.default_rng(0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        imported, data = peak_rss_mib(), batch(size)
        for _ in range(3):
            passes(model, [shape.largest(), shape.sample(rng), shape.sample(rng), shape.smallest()], data)
            optimizer.step()
    else:
        step = plain_step(kind, size)
        imported = peak_rss_mib()
        for _ in range(3):
            step()
    peak = peak_rss_mib()
    print(json.dumps({"peak_mib": peak, "training_mib": peak - imported}))


def show(report: dict[str, Any]) -> None:
    """The table."""
    env = report["environment"]
    where = f"{env['device']}; torch {env['versions']['torch']}, {env['threads']} threads"
    title = f"{where}, {env['clock']} time, load {env['load_average'][0]:.1f}"
    table = Table("figure", "value", "quartiles", "aim", title=title)

    def line(name: str, value: dict[str, float], aim: float) -> None:
        table.add_row(name, f"{value['median']:.3f}", f"{value['low']:.3f} - {value['high']:.3f}", f"<= {aim}")

    for name, found in report["sub_network"].items():
        line(f"sub-network / stand-alone, {name}", found["ratio"], AIMS["sub-network"])
    line("sandwich / sum of its parts", report["sandwich"]["ratio"], AIMS["sandwich"])
    line("step of the largest / transformers", report["transformers"]["ratio"], AIMS["transformers"])
    evaluated = report["evaluation"]
    table.add_row(
        "candidate evaluation, s", f"{evaluated['seconds_sample']:.3f}", f"all windows: {evaluated['seconds_all']:.3f}"
    )
    errors = evaluated["rms_error"]
    table.add_row("its rms error, nat", f"{errors['regression']:.5f}", f"plain mean: {errors['plain_mean']:.5f}")
    costs = report["closed_forms"]
    table.add_row("parameter count, us", f"{costs['count_params_us']:.1f}")
    table.add_row(
        "architecture under a budget, us",
        f"{costs['sample_under_budget_us']:.1f}",
        f"setup {costs['sampler_setup_ms']:.0f} ms",
    )
    for kind, found in report["memory"].items():
        table.add_row(
            f"peak memory, {kind}, MiB", f"{found['peak_mib']:.0f}", f"training adds {found['training_mib']:.0f}"
        )
    table.add_row(
        "import llmnas, ms", f"{report['import']['import_ms']:.0f}", f"empty Python {report['import']['python_ms']:.0f}"
    )
    Console(width=120).print(table)


def main() -> None:
    """Measure everything, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description="speed of the supernet, side by side")
    parser.add_argument("--quick", action="store_true", help="small sizes, few repeats")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--repeats", type=int, default=0, help="0: 11, or 3 with --quick")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "supernet_speed.json")
    parser.add_argument("--child", choices=("ours", "transformers", "sandwich"), help=argparse.SUPPRESS)
    parser.add_argument("--child-size", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.child:
        child(args.child, args.child_size)
        return
    if args.clock == "cpu" and torch.get_num_threads() != 1:
        parser.error("--clock cpu needs --threads 1: waiting threads burn CPU time too")
    size, repeats = (QUICK, args.repeats or 3) if args.quick else (FULL, args.repeats or 11)
    tested = {**QUICK, "seq": 128, "batch": 8} if args.quick else {**FULL, "hidden": 128, "layers": 4, "ffn": 384}
    begin = time.perf_counter()
    report: dict[str, Any] = {
        "environment": environment(args.clock, ("torch", "transformers", "numpy")),
        "size": size,
        "repeats": repeats,
        "sub_network": sub_networks(size, repeats, args.clock),
        "sandwich": sandwich(size, repeats, args.clock),
        "transformers": against_transformers(size, repeats, args.clock),
        "evaluation": evaluation(tested, *((20, 32, 4) if args.quick else (200, 128, 12)), args.clock),
        "closed_forms": closed_forms(size, 200 if args.quick else 2000, args.clock),
        "memory": memory(size, args.threads or torch.get_num_threads()),
        "import": import_cpu("llmnas", repeats),
    }
    report["seconds"] = time.perf_counter() - begin
    show(report)
    write_json(args.json, report)


if __name__ == "__main__":
    main()
