"""Train an llmnas supernet for a given time and measure fixed sub-networks: our side of equal compute.

Takes the files and writes the JSON of `peer_whittle.py`, which states what both sides share. What is ours: the model
and its initialisation, the samplers, the order of the training windows (every window once an epoch) and DeepSpeed
around torch's fused AdamW. The trainer proper counts steps; here the learning rate follows the clock, as the peer's.
Depth d means the FIRST d layers, for training as for measuring, so that both sides hold the same networks.

    python benchmarks/equal_ours.py --train train.bin --validation val.bin --architectures archs.json \\
        --space space.json --strategy single:4 --lr 2e-3 --seconds 240 --json out.json

Strategies: `single:N` one network a step, the largest or the smallest in turn at every N-th (0: never on purpose);
`uniform:N` N random networks a step; `sandwich:N` the largest, the smallest and N random ones. Several networks of a
step see batches of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmnas import Architecture, LayerSpec, SearchSpace, count_params
from llmnas.data import Sequences
from llmnas.evaluate.quality import window_losses
from llmnas.files import write_json
from llmnas.rng import torch_seed
from llmnas.supernet import Transformer
from llmnas.train.engine import Engine, start_processes
from llmnas.train.sampling import SupernetSampler
from llmnas.train.schedule import first_sequence, learning_rate
from llmnas.train.settings import SamplerSettings, TrainSettings

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
CURVE_SECONDS = 5.0
TICKS = 1_000_000  # the schedule in steps, read at a fraction of the time


def search_space(spec: dict[str, Any], seq: int) -> SearchSpace:
    """The peer's space in our terms: every size shared by all layers, one subset of layers for each depth."""
    groups = [heads // spec["queries_per_group"] for heads in spec["heads"]]
    return SearchSpace.model_validate(
        {
            "base": {"vocab_size": spec["vocab_size"], "tied": spec["tied"], "max_seq": seq},
            "layers": max(spec["depth"]),
            "hidden_size": spec["hidden_size"],
            "depth": {"choices": spec["depth"], "policy": "even"},
            "kv_heads": groups,
            "queries_per_group": spec["queries_per_group"],
            "head_dim": spec["head_dim"],
            "ffn_size": spec["ffn_size"],
        }
    )


def first_layers(arch: Architecture) -> Architecture:
    """The same sizes at the first layers instead of an evenly spaced subset."""
    kept = tuple(spec for _, spec in arch.kept)
    return Architecture(arch.hidden_size, kept + (None,) * (len(arch.layers) - len(kept)))


def architecture(spec: dict[str, Any], network: dict[str, int]) -> Architecture:
    """One of the peer's networks in our terms."""
    queries, depth = spec["queries_per_group"], network["depth"]
    layer = LayerSpec(network["heads"] // queries, queries, spec["head_dim"], network["ffn_size"])
    return Architecture(network["hidden_size"], (layer,) * depth + (None,) * (max(spec["depth"]) - depth))


def sampler_settings(strategy: str) -> SamplerSettings:
    """`kind:N` to settings."""
    kind, _, number = strategy.partition(":")
    if kind == "single":
        return SamplerSettings(kind="single", anchor_every=int(number))
    return SamplerSettings.model_validate({"kind": kind, "random": int(number)})


def train(model: Transformer, space: SearchSpace, tokens: np.ndarray, args: argparse.Namespace) -> dict[str, Any]:
    """Train for `args.seconds` of the clock (the last step may end a little later) and say what was done."""
    settings = TrainSettings(
        steps=TICKS,
        batch_size=args.batch,
        seq_len=args.seq,
        lr=args.lr,
        betas=(0.9, args.beta2),
        sampler=sampler_settings(args.strategy),
    )
    sampler = SupernetSampler(space, None, settings.sampler, args.seed)
    sequences = Sequences(tokens, args.seq, args.seed)
    engine = Engine(model, settings, start_processes())
    clock = CLOCKS[args.clock]
    curve: list[dict[str, float]] = []
    step = passes = recent = 0
    total = torch.zeros(())
    elapsed, begin, wall = 0.0, clock(), time.perf_counter()
    while elapsed < args.seconds:
        networks = [first_layers(arch) for arch in sampler.networks(step)]
        for i, arch in enumerate(networks):
            batch = torch.from_numpy(sequences.batch(first_sequence(step, i, settings), args.batch))
            out = engine.forward(batch[:, :-1], arch, targets=batch[:, 1:])
            engine.backward(out.loss / len(networks))
            total += out.cross_entropy
        lr = learning_rate(min(TICKS - 1, int((clock() - begin) / args.seconds * TICKS)), settings)
        engine.step(lr, settings.weight_decay, networks)
        step, passes, recent = step + 1, passes + len(networks), recent + len(networks)
        elapsed = clock() - begin
        if elapsed >= CURVE_SECONDS * (len(curve) + 1) or elapsed >= args.seconds:
            curve.append({"seconds": elapsed, "step": step, "loss": float(total) / recent, "lr": lr})
            print(f"{elapsed:7.1f} s  step {step:5d}  loss {curve[-1]['loss']:.4f}", flush=True)
            total, recent = torch.zeros(()), 0
    seen = passes * args.batch * args.seq
    return {
        "steps": step,
        "networks_trained": passes,
        "clock_seconds": elapsed,
        "wall_seconds": time.perf_counter() - wall,
        "network_tokens_per_second": seen / elapsed,
        "curve": curve,
    }


def measure(model: Transformer, networks: list[Architecture], tokens: np.ndarray, args: argparse.Namespace) -> Any:
    """Loss, parameters and seconds of each network, on the windows that the peer takes."""
    total = (len(tokens) - 1) // args.seq
    starts = args.seq * np.floor(np.linspace(0, total - 1, args.val_windows)).astype(np.int64)
    windows = np.asarray(tokens[starts[:, None] + np.arange(args.seq + 1)], dtype=np.int64)
    results = []
    for arch in networks:
        begin = CLOCKS[args.clock]()
        loss = float(window_losses(model, arch, windows, args.batch).mean())
        seconds = CLOCKS[args.clock]() - begin
        results.append({"params": count_params(arch, model.base).total, "val_loss": loss, "seconds": seconds})
        print(f"{results[-1]['params']:>10,} parameters  validation loss {loss:.4f}  ({seconds:.2f} s)", flush=True)
    return results


def arguments() -> argparse.ArgumentParser:
    """The command line: the peer's."""
    parser = argparse.ArgumentParser(description="our side of the equal-compute comparison")
    for name in ("train", "validation", "architectures", "space", "json"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--strategy", required=True, help="single:4, single:0, uniform:2, sandwich:2, ...")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--beta2", type=float, default=0.95, help="AdamW's decay of squared gradients")
    parser.add_argument("--seconds", type=float, default=240.0, help="time of training, evaluation not counted")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="wall time, or CPU time of the process")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--val-windows", type=int, default=128)
    return parser


def main() -> None:
    """Train, measure, write the JSON."""
    args = arguments().parse_args()
    torch.set_num_threads(args.threads)
    spec = json.loads(args.space.read_text(encoding="utf-8"))
    space = search_space(spec, args.seq)
    named = [architecture(spec, network) for network in json.loads(args.architectures.read_text(encoding="utf-8"))]
    tokens = {name: np.memmap(getattr(args, name), dtype="<u2", mode="r") for name in ("train", "validation")}
    load = os.getloadavg()
    model = Transformer(space, torch_seed(args.seed, "init"))
    training = train(model, space, tokens["train"], args)
    ends = [first_layers(arch) for arch in (space.smallest(), space.largest())]
    *results, smallest, largest = measure(model, [*named, *ends], tokens["validation"], args)
    mean = {key: float(np.mean([result[key] for result in results])) for key in ("val_loss", "seconds")}
    report = {
        "versions": {name: version(name) for name in ("torch", "deepspeed", "numpy")},
        "python": platform.python_version(),
        "load_average": {"before": load, "after": os.getloadavg()},
        "settings": {key: str(v) if isinstance(v, Path) else v for key, v in vars(args).items()},
        "training": training,
        "architectures": results,
        "smallest": smallest,
        "largest": largest,
        "mean_val_loss": mean["val_loss"],
        "seconds_per_candidate": mean["seconds"],
    }
    write_json(args.json, report)
    print(f"{args.strategy}: mean validation loss {mean['val_loss']:.4f} over {len(named)} sub-networks, {args.json}")


if __name__ == "__main__":
    main()
