"""Train a whittle 0.6 supernet for a given time and measure fixed sub-networks: the peer's side of equal compute.

Runs in an environment of its own (`torch==2.13.0`, `whittle==0.6.0`), so it imports nothing of llmnas:

    python benchmarks/peer_whittle.py --train train.bin --validation val.bin --architectures archs.json \\
        --space space.json --strategy sandwich --lr 2e-3 --seconds 240 --json out.json

Files
    train.bin, val.bin   token ids, flat little-endian uint16
    space.json           {"vocab_size", "hidden_size": [..], "depth": [..], "heads": [..], "ffn_size": [..], "head_dim",
                         "queries_per_group", "tied"}; every size is shared by all layers, depth d is the FIRST d
                         layers, KV groups = heads / queries_per_group
    archs.json           [{"hidden_size", "depth", "heads", "ffn_size"}, ..]: the sub-networks to measure

What is whittle's own: the model, the sampler, the strategy classes with their default number of random sub-networks
(sandwich 2 + largest + smallest, random 1, ATS 1), the scale of the loss (1 / random samples, as in
`whittle.pretrain_super_network.fit`), the way to tie the head, and both initialisations:
    normal     `GPT._init_weights`: every matrix N(0, 0.02); the default, it trains better than
    pretrain   `litgpt.pretrain.initialize_weights`, what whittle's pretraining command calls: N(0, sqrt(0.4 / hidden)),
               MLP down projections N(0, 1 / (sqrt(hidden) layers)). Meant for attention projections too, but whittle's
               attention is not a subclass of litgpt's, so those keep the wide one.
What is ours, the same for both sides: random windows, AdamW (fused) with betas (0.9, `--beta2`) and weight decay 0.1
(norm gains and the embedding excluded), clipping at 1.0, warm-up over 5 % and cosine to 10 % of the TIME, which is wall
time or, where other programs share the machine, the CPU time of this process (`--clock cpu --threads 1`).
What helps whittle: its loss, litgpt's `chunked_cross_entropy`, is called with chunk_size=0 (the same value); the
default of 128 rows a chunk takes 0.77 s instead of 0.08 s on 2 CPU threads for 2048 tokens and 4096 classes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import platform
import resource
import time
import warnings
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

warnings.filterwarnings("ignore")
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # notices on absent extras
    import torch
    from lightning import Fabric
    from litgpt import Config
    from litgpt.pretrain import initialize_weights
    from litgpt.utils import chunked_cross_entropy
    from syne_tune.config_space import choice
    from whittle.models.gpt import GPT
    from whittle.models.gpt.extract import extract_current_sub_network
    from whittle.sampling.random_sampler import RandomSampler
    from whittle.training_strategies import ATS, RandomStrategy, SandwichStrategy
    from whittle.training_strategies.base_strategy import BaseTrainingStrategy

STRATEGIES = {"sandwich": SandwichStrategy, "random": RandomStrategy, "ats": ATS}
CHOICES = ("hidden_size", "depth", "heads", "ffn_size")
WEIGHT_DECAY, CLIP = 0.1, 1.0
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
WARMUP, FLOOR = 0.05, 0.1  # fractions of the time and of the peak learning rate
CURVE_SECONDS = 5.0

Tokens = npt.NDArray[np.uint16]
SubNetwork = dict[str, int]  # keyword arguments of whittle's `set_sub_network`


class Space:
    """The search space in the form that whittle's samplers take: `config_space` and `cast`."""

    def __init__(self, path: Path) -> None:
        spec = json.loads(path.read_text(encoding="utf-8"))
        self.sizes: dict[str, list[int]] = {name: spec[name] for name in CHOICES}
        self.vocab_size: int = spec["vocab_size"]
        self.head_dim: int = spec["head_dim"]
        self.queries_per_group: int = spec["queries_per_group"]
        self.tied: bool = spec["tied"]
        self.config_space = {name: choice(sizes) for name, sizes in self.sizes.items()}

    def cast(self, choices: dict[str, int]) -> SubNetwork:
        """One value a dimension -> whittle's arguments; KV groups follow heads, so that every draw is legal."""
        wrong = {name: value for name, value in choices.items() if value not in self.sizes.get(name, ())}
        if wrong or set(choices) != set(CHOICES):
            raise ValueError(f"architecture {choices} is not in the space {self.sizes}")
        return {
            "sub_network_n_embd": int(choices["hidden_size"]),
            "sub_network_n_layers": int(choices["depth"]),
            "sub_network_num_heads": int(choices["heads"]),
            "sub_network_query_groups": int(choices["heads"]) // self.queries_per_group,
            "sub_network_head_size": self.head_dim,
            "sub_network_intermediate_size": int(choices["ffn_size"]),
        }


def build(space: Space, seq: int, init: str, seed: int) -> GPT:
    """The supernet at its largest size, initialised from `seed` by one of whittle's two ways (see the file's top)."""
    config = Config(
        name="peer",
        block_size=seq,
        vocab_size=space.vocab_size,
        padded_vocab_size=space.vocab_size,
        n_layer=max(space.sizes["depth"]),
        n_embd=max(space.sizes["hidden_size"]),
        n_head=max(space.sizes["heads"]),
        n_query_groups=max(space.sizes["heads"]) // space.queries_per_group,
        head_size=space.head_dim,
        intermediate_size=max(space.sizes["ffn_size"]),
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=1e-5,
        mlp_class_name="LLaMAMLP",
    )
    torch.manual_seed(seed)
    model = GPT(config)
    if init == "pretrain":
        initialize_weights(Fabric(accelerator="cpu", devices=1), model, n_layer=config.n_layer, n_embd=config.n_embd)
    else:
        model.apply(model._init_weights)
    if space.tied:  # as whittle.pretrain_super_network does; GPT.tie_weights needs a key that litgpt's Config lacks
        model.transformer.wte.weight = model.lm_head.weight
    return model


def adamw(model: GPT, lr: float, beta2: float) -> torch.optim.AdamW:
    """AdamW in two groups: matrices decay, norm gains and the embedding (with a tied head) do not."""
    embedding = model.transformer.wte.weight
    matrices = [p for p in model.parameters() if p.dim() > 1 and p is not embedding]
    others = [p for p in model.parameters() if p.dim() == 1 or p is embedding]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, beta2), fused=True)


def rate(progress: float) -> float:
    """Learning rate over its peak at a fraction of the time: linear warm-up, then cosine to FLOOR."""
    if progress < WARMUP:
        return progress / WARMUP
    falling = min(1.0, (progress - WARMUP) / (1.0 - WARMUP))
    return FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + math.cos(math.pi * falling))


def windows(tokens: Tokens, starts: npt.NDArray[np.int64], seq: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets, each int64 [len(starts), seq], of the windows of seq + 1 tokens at `starts`."""
    rows = torch.from_numpy(np.stack([tokens[start : start + seq + 1] for start in starts]).astype(np.int64))
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def networks(strategy: BaseTrainingStrategy) -> int:
    """How many sub-networks the strategy's next step trains."""
    if isinstance(strategy, SandwichStrategy):
        return strategy.random_samples + 2
    if isinstance(strategy, ATS) and strategy.current_step % 2 == 1:
        return 1
    return int(strategy.random_samples)


def train(model: GPT, strategy: BaseTrainingStrategy, tokens: Tokens, args: argparse.Namespace) -> dict[str, Any]:
    """Train for `args.seconds` of the clock (the last step may end a little later) and say what was done.

    The curve holds the mean training loss per network (nats/token) since its last point.
    """
    optimizer = adamw(model, args.lr, args.beta2)
    rng = np.random.default_rng(args.seed)
    scale = 1.0 / strategy.random_samples
    steps = passes = recent_passes = 0
    recent_loss = 0.0
    curve: list[dict[str, float]] = []
    clock = CLOCKS[args.clock]
    elapsed, begin, wall = 0.0, clock(), time.perf_counter()
    while elapsed < args.seconds:
        inputs, targets = windows(tokens, rng.integers(0, len(tokens) - args.seq, args.batch), args.seq)
        count = networks(strategy)
        recent_loss += strategy(model, inputs, targets, scale_loss=scale) / scale
        recent_passes += count
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        # Read here and not before the passes, so that the very first step does not have a learning rate of zero.
        factor = rate((clock() - begin) / args.seconds)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * factor
        optimizer.step()
        optimizer.zero_grad()
        steps, passes = steps + 1, passes + count
        elapsed = clock() - begin
        if elapsed >= CURVE_SECONDS * (len(curve) + 1) or elapsed >= args.seconds:
            curve.append(
                {"seconds": elapsed, "step": steps, "loss": recent_loss / recent_passes, "lr": args.lr * factor}
            )
            print(f"{elapsed:7.1f} s  step {steps:5d}  loss {curve[-1]['loss']:.4f}", flush=True)
            recent_loss, recent_passes = 0.0, 0
    seen = steps * args.batch * args.seq
    return {
        "steps": steps,
        "networks_trained": passes,
        "tokens": seen,
        "clock_seconds": elapsed,
        "wall_seconds": time.perf_counter() - wall,
        "tokens_per_second": seen / elapsed,
        "network_tokens_per_second": passes * args.batch * args.seq / elapsed,
        "peak_rss_mib": peak_rss_mib(),
        "curve": curve,
    }


@torch.no_grad()
def evaluate(model: GPT, network: SubNetwork, inputs: torch.Tensor, targets: torch.Tensor, batch: int) -> float:
    """Mean loss (nats/token) of one sub-network, active inside the supernet, over inputs and targets [windows, seq]."""
    model.set_sub_network(**network)
    total = 0.0
    for x, y in zip(inputs.split(batch), targets.split(batch), strict=True):
        logits = model(x)
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum").item()
    model.reset_super_network()
    return total / targets.numel()


def parameters(model: GPT, network: SubNetwork, tied: bool) -> int:
    """Parameters of the extracted sub-network, a tied head counted once.

    From true shapes, as `whittle.metrics.compute_parameters` is wrong under GQA. The extracted model is always untied.
    """
    model.set_sub_network(**network)
    extracted = extract_current_sub_network(model)
    model.reset_super_network()
    count = sum(p.numel() for p in extracted.parameters())
    return count - extracted.lm_head.weight.numel() if tied else count


def measure(
    model: GPT, space: Space, named: dict[str, SubNetwork], tokens: Tokens, args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Loss, parameters and seconds of each network on evenly spread, non-overlapping windows of the tokens."""
    total = (len(tokens) - 1) // args.seq
    starts = args.seq * np.floor(np.linspace(0, total - 1, args.val_windows)).astype(np.int64)
    inputs, targets = windows(tokens, starts, args.seq)
    results = {}
    for name, network in named.items():
        begin = CLOCKS[args.clock]()
        loss = evaluate(model, network, inputs, targets, args.batch)
        seconds = CLOCKS[args.clock]() - begin
        count = parameters(model, network, space.tied)
        results[name] = {"sub_network": network, "params": count, "val_loss": loss, "seconds": seconds}
        print(f"{name:>10}  {count:>10,} parameters  validation loss {loss:.4f}  ({seconds:.2f} s)", flush=True)
    return results


def peak_rss_mib() -> float:
    """Peak resident memory of this process (VmHWM: unlike ru_maxrss, it does not start at a parent's peak)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="whittle's side of the equal-compute comparison")
    for name in ("train", "validation", "architectures", "space", "json"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--strategy", choices=sorted(STRATEGIES), required=True)
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--beta2", type=float, default=0.95, help="AdamW's decay of squared gradients")
    parser.add_argument("--init", choices=("normal", "pretrain"), default="normal")
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
    parser = arguments()
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        space = Space(args.space)
        named = {
            str(i): space.cast(a) for i, a in enumerate(json.loads(args.architectures.read_text(encoding="utf-8")))
        }
        tokens: dict[str, Tokens] = {
            n: np.memmap(getattr(args, n), dtype="<u2", mode="r") for n in ("train", "validation")
        }
    except (OSError, ValueError) as error:  # json.JSONDecodeError is a ValueError
        parser.error(str(error))
    except KeyError as error:
        parser.error(f"{args.space}: missing key {error}")
    for name, needed in (("train", args.seq + 1), ("validation", args.val_windows * args.seq + 1)):
        if len(tokens[name]) < needed or tokens[name].max() >= space.vocab_size:
            parser.error(f"--{name}: needs at least {needed} tokens, each below vocab_size {space.vocab_size}")

    load = os.getloadavg()
    model = build(space, args.seq, args.init, args.seed)
    sampler = RandomSampler(space, seed=args.seed)
    strategy = STRATEGIES[args.strategy](
        sampler=sampler, loss_function=partial(chunked_cross_entropy, chunk_size=0), device="cpu"
    )
    training = train(model, strategy, tokens["train"], args)
    ends = {"smallest": sampler.get_smallest_sub_network(), "largest": sampler.get_largest_sub_network()}
    results = measure(model, space, named | ends, tokens["validation"], args)

    mean = {key: float(np.mean([results[name][key] for name in named])) for key in ("val_loss", "seconds")}
    report = {
        "versions": {name: version(name) for name in ("whittle", "litgpt", "torch", "numpy")},
        "python": platform.python_version(),
        "load_average": {"before": load, "after": os.getloadavg()},
        "settings": {key: str(v) if isinstance(v, Path) else v for key, v in vars(args).items()} | {"tied": space.tied},
        "training": training,
        "architectures": [results[name] for name in named],
        **{name: results[name] for name in ends},
        "mean_val_loss": mean["val_loss"],
        "seconds_per_candidate": mean["seconds"],
    }
    partial_file = args.json.with_suffix(".partial")
    partial_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    partial_file.replace(args.json)
    print(f"{args.strategy}: mean validation loss {mean['val_loss']:.4f} over {len(named)} sub-networks, {args.json}")


if __name__ == "__main__":
    main()
