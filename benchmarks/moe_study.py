"""Dense against experts at equal active and at equal total parameters, alone and as a search chooses; three seeds.

    python benchmarks/moe_study.py --set train.steps=1800 --set retrain.train.steps=600 \\
        --json benchmarks/results/moe_study.json

Every piece is stored in the folder when it is done; the same command goes on. The space, the text and the training are
those of search_configs/moe_cpu.yaml. A seed has its own split of the speeches, weights, order of data, supernet and
searches; every comparison is between networks of one seed.

Alone: `moe F` has the active feed-forward of `dense F` (4 experts, one a token; `fine F`: 8 of half the size, two a
token) and the stored one of `dense 4F`. Chosen: from one supernet, the best network that a search of the whole space
found and the best of a search of its dense part, under a bound on active and under one on total parameters,
both trained alone.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from llmnas.config import Config, load_config
from llmnas.cost import count_params
from llmnas.data import Sequences
from llmnas.evaluate.evaluator import Evaluator
from llmnas.evaluate.quality import window_losses
from llmnas.files import read_json, write_json
from llmnas.pareto import Evaluation, front
from llmnas.pipeline.context import Context
from llmnas.pipeline.prepare import prepare
from llmnas.pipeline.stand_alone import load_alone, train_alone
from llmnas.pipeline.train import train_supernet
from llmnas.rng import generator
from llmnas.runs import RunFolder
from llmnas.search import search
from llmnas.space import Architecture, LayerSpec, SearchSpace
from llmnas.supernet import Transformer, extract
from llmnas.supernet.importance import Importance, importance, reorder
from llmnas.tracking import Tracker

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "search_configs" / "moe_cpu.yaml"
DENSE, MIXED = (128, 512), (128,)
BOUNDS = {"active_params": 190_000, "params": 300_000}
"""Bounds of what is chosen: between the networks alone, so that both sides have something on either side."""
CALIBRATION = 32  # windows of training text that experts are scored on


def shape(space: SearchSpace, spec: LayerSpec) -> Architecture:
    """The same layer everywhere, the rest as the space has it."""
    return replace(space.envelope, layers=(spec,) * space.layers)


def networks(space: SearchSpace) -> dict[str, Architecture]:
    """What is trained alone, by name."""
    (_, one) = space.envelope.kept[0]
    found = {f"dense {f}": replace(one, experts=1, top_k=1, ffn_size=f) for f in DENSE}
    found |= {f"moe {f}": replace(one, experts=4, top_k=1, ffn_size=f) for f in MIXED}
    found |= {f"fine {f}": replace(one, experts=8, top_k=2, ffn_size=f // 2) for f in MIXED}
    return {name: shape(space, spec) for name, spec in found.items()}


def dense_part(space: SearchSpace) -> SearchSpace:
    """The same space without experts."""
    return SearchSpace.from_dict({**space.model_dump(), "experts": 1, "top_k": 1})


class Seed:
    """The pieces of one seed, each computed once."""

    def __init__(self, folder: Path, seed: int, stack: ExitStack, changes: Sequence[str] = ()) -> None:
        self.seed = seed
        self.config: Config = load_config(CONFIG, [f"seed={seed}", *changes])
        self.run = RunFolder(folder / f"seed{seed}")
        tracker = stack.enter_context(Tracker(self.run.path, "off", "llmnas", {}))
        self.context = Context(self.config, self.run, tracker)
        self.context.claim()

    def stored(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The piece of this name, with the CPU seconds that it took."""
        path = self.run.path / "study" / f"{name}.json"
        if not path.exists():
            begin = time.process_time()
            found = compute()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {**found, "cpu_seconds": time.process_time() - begin})
            print(f"seed {self.seed}: {name}: {read_json(path)['cpu_seconds']:.0f} s", flush=True)
        piece: dict[str, Any] = read_json(path)
        return piece

    def has(self, name: str) -> bool:
        """Whether this piece is done."""
        return (self.run.path / "study" / f"{name}.json").exists()

    def alone(self, label: str, arch: Architecture, **changes: float) -> dict[str, Any]:
        """One network trained alone, as the config says or with `changes` of that: its loss and its sizes."""
        name = "-".join(["alone", arch.id, *(f"{key}={value:g}" for key, value in changes.items())])

        def compute() -> dict[str, Any]:
            settings = self.config.stage_settings("retrain", self.config.retrain.train)
            settings = settings.model_copy(update={**changes, "save_every": changes.get("steps", settings.save_every)})
            place = self.run.stand_alone("study", name.removeprefix("alone-"), self.seed)
            result = train_alone(self.context, arch, settings, self.seed, place, label, "scratch")
            sizes = count_params(arch, self.config.space.base)
            return {"label": label, "val_loss": result["val_loss"], "params": sizes.total, "active": sizes.active}

        return self.stored(name, compute)

    def supernet(self) -> dict[str, Any]:
        """Train the supernet."""

        def compute() -> dict[str, Any]:
            outcome = train_supernet(self.context)
            return {"tokens": outcome.tokens if outcome else None}

        return self.stored("supernet", compute)

    def searched(self, kind: str) -> dict[str, Any]:
        """All evaluations of one search of the supernet: `whole` space or its `dense` part."""

        def compute() -> dict[str, Any]:
            options = self.config.search
            windows, bytes_per_token = self.context.windows(options.windows)
            model = self.context.supernet()
            evaluate = Evaluator(model, windows, options.sample, bytes_per_token, self.config.budget.workload)
            space = self.config.space if kind == "whole" else dense_part(self.config.space)
            archive = search(
                space, evaluate, options.strategy, options.objectives, self.config.budget, {}, options.evaluations,
                self.seed,
            )  # fmt: skip
            rows = [{"architecture": e.arch.to_dict(), "metrics": e.metrics} for e in archive.evaluations]
            return {"evaluations": rows}

        return self.stored(f"search-{kind}", compute)

    def ordered(self, label: str, model: Callable[[], Transformer]) -> dict[str, Any]:
        """Loss with the leading half of the experts: as they are, sorted by importance, and in three random orders."""

        def compute() -> dict[str, Any]:
            calibration = self.calibration()
            windows, _ = self.context.windows(self.config.search.windows)
            whole = model()
            half = tuple(s and replace(s, experts=s.experts // 2) for s in whole.envelope.layers)
            arch = replace(whole.envelope, layers=half)

            def loss(changed: Transformer, arch: Architecture) -> float:
                return float(window_losses(changed, arch, windows).mean())

            found: dict[str, Any] = {"whole": loss(whole, whole.envelope), "as it was": loss(whole, arch)}
            scores = importance(whole, calibration)
            best = model()
            reorder(best, experts_only(scores))
            found["sorted"] = loss(best, arch)
            found["random"] = []
            for i in range(3):
                shuffled, rng = model(), generator(self.seed, "shuffle", i)
                noise = {name: torch.from_numpy(rng.random(len(score))) for name, score in scores.experts.items()}
                reorder(shuffled, experts_only(replace(scores, experts=noise)))
                found["random"].append(loss(shuffled, arch))
            return found

        return self.stored(f"order-{label}", compute)

    def calibration(self) -> list[torch.Tensor]:
        """Windows of training text."""
        sequences = Sequences(self.context.tokens("train").tokens, self.config.train.seq_len, self.seed)
        return [torch.from_numpy(sequences.batch(i, 8)[:, :-1]) for i in range(0, CALIBRATION, 8)]


def experts_only(scores: Importance) -> Importance:
    """The same scores of experts; everything else stays where it is."""
    hidden = -torch.arange(len(scores.hidden), dtype=torch.float32)
    return Importance(hidden, {}, {}, {}, scores.experts)


def trained_alone(seed: Seed) -> None:
    """The networks of equal sizes."""
    prepare(seed.context)
    for label, arch in networks(seed.config.space).items():
        seed.alone(label, arch)


def searched(seed: Seed) -> dict[str, list[Evaluation]]:
    """The supernet and its two searches."""
    prepare(seed.context)
    seed.supernet()
    return {kind: evaluations(seed.searched(kind)) for kind in ("whole", "dense")}


def chosen(seed: Seed) -> None:
    """What the searches chose, trained alone, and the order of the supernet's experts."""
    found = searched(seed)
    for metric, bound in BOUNDS.items():
        for kind, rows in found.items():
            seed.alone(f"chosen {kind} {metric}", best_within(rows, metric, bound).arch)
    seed.ordered("supernet", lambda: cut(seed.context.supernet(), seed.config.space))
    fine = networks(seed.config.space)[f"fine {MIXED[-1]}"]
    if seed.has(f"alone-{fine.id}"):
        place = seed.run.stand_alone("study", fine.id, seed.seed)
        seed.ordered("alone", lambda: load_alone(seed.context, fine, place))


PARTS: dict[str, Callable[[Seed], object]] = {"alone": trained_alone, "search": searched, "chosen": chosen}


def cut(supernet: Transformer, space: SearchSpace) -> Transformer:
    """The network of 8 experts, two a token, that fits the budget, out of the supernet."""
    return extract(supernet, networks(space)[f"fine {MIXED[-1]}"])


def evaluations(piece: dict[str, Any]) -> list[Evaluation]:
    """The rows of a stored search."""
    return [Evaluation(Architecture.from_dict(row["architecture"]), row["metrics"]) for row in piece["evaluations"]]


def best_within(rows: Sequence[Evaluation], metric: str, bound: int) -> Evaluation:
    """The least supernet loss among those within the bound."""
    return min((e for e in rows if e.metrics[metric] <= bound), key=lambda e: e.metrics["val_loss"])


def interval(differences: Sequence[float]) -> dict[str, Any]:
    """Mean of paired differences with its 95 % t interval."""
    values = np.array(differences)
    if len(values) < 2:
        return {"each": values.tolist()}
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return {"mean": values.mean(), "low": values.mean() - half, "high": values.mean() + half, "each": values.tolist()}


def summary(seeds: Sequence[Seed]) -> dict[str, Any]:
    """Every number that the page quotes, from the seeds that have come so far."""
    shapes = networks(seeds[0].config.space)
    ready = [seed for seed in seeds if all(seed.has(f"alone-{arch.id}") for arch in shapes.values())]
    alone = {name: [seed.alone(name, arch) for seed in ready] for name, arch in shapes.items()}
    pairs = {}
    for kind, f in itertools.product(("moe", "fine"), MIXED):
        for against, equal in ((f, "active"), (4 * f, "total")):
            difference = paired(alone[f"{kind} {f}"], alone[f"dense {against}"])
            pairs[f"{kind} {f} - dense {against} (equal {equal})"] = difference
    have = [seed for seed in seeds if seed.has("search-whole") and seed.has("search-dense")]
    searches = [{kind: evaluations(seed.searched(kind)) for kind in ("whole", "dense")} for seed in have]
    chosen: dict[str, list[dict[str, Any]]] = {}
    for metric, bound in BOUNDS.items():
        best = [
            {kind: best_within(rows, metric, bound) for kind, rows in found.items()} for found in searches
        ]  # fmt: skip
        trained = [all(seed.has(f"alone-{e.arch.id}") for e in b.values()) for seed, b in zip(have, best, strict=True)]
        for kind in ("whole", "dense"):
            chosen[f"{kind} {metric}"] = [
                {"supernet": b[kind].metrics["val_loss"], "experts": [s.experts for _, s in b[kind].arch.kept],
                 **(seed.alone("", b[kind].arch) if done else {})}
                for seed, b, done in zip(have, best, trained, strict=True)
            ]  # fmt: skip
        if any(trained):
            ours, theirs = (
                [run for run in chosen[f"{kind} {metric}"] if "params" in run] for kind in ("whole", "dense")
            )  # fmt: skip
            pairs[f"chosen, {metric} <= {bound:,}: whole space - dense part"] = paired(ours, theirs)
    return {
        "versions": {"torch": torch.__version__},
        "alone": alone,
        "chosen": chosen,
        "differences": pairs,
        "fronts": {metric: [front_experts(rows["whole"], metric) for rows in searches] for metric in BOUNDS},
        "order": {
            label: [
                read_json(seed.run.path / "study" / f"order-{label}.json")
                for seed in seeds
                if seed.has(f"order-{label}")
            ]
            for label in ("supernet", "alone")
        },
        "cpu_seconds": sum(
            read_json(path)["cpu_seconds"] for seed in seeds for path in (seed.run.path / "study").glob("*.json")
        ),
    }


def paired(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, Any]:
    """Differences of the losses, seed by seed."""
    return interval([a["val_loss"] - b["val_loss"] for a, b in zip(ours, theirs, strict=True)])


def front_experts(rows: Sequence[Evaluation], metric: str) -> dict[str, Any]:
    """How often each layer has experts: on the front of loss and one size, and among everything evaluated."""

    def share(of: Sequence[Evaluation]) -> list[float]:
        rows = np.array([[spec.experts > 1 for _, spec in e.arch.kept] for e in of])
        return [float(value) for value in rows.mean(0)]

    best = front(rows, {"val_loss": "min", metric: "min"})
    points = [[e.metrics[metric], e.metrics["val_loss"], [s.experts for _, s in e.arch.kept]] for e in best]
    return {"front": share(best), "evaluated": share(rows), "points": sorted(points)}


def show(found: dict[str, Any]) -> None:
    """The differences and the losses as lines."""
    for name, runs in found["alone"].items():
        if not runs:
            continue
        losses = [run["val_loss"] for run in runs]
        print(f"{name:10} {runs[0]['params']:9,} {runs[0]['active']:9,}  {np.mean(losses):.4f} {np.round(losses, 4)}")
    for name, d in found["differences"].items():
        print(name, {key: np.round(value, 4) for key, value in d.items()})
    for label, runs in found["order"].items():
        for run in runs:
            print(label, {key: np.round(value, 4) for key, value in run.items() if key != "cpu_seconds"})
    for metric, runs in found["fronts"].items():
        if not runs:
            continue
        print(
            metric, "front:", np.mean([r["front"] for r in runs], 0), "all:", np.mean([r["evaluated"] for r in runs], 0)
        )
    print(f"{found['cpu_seconds']:.0f} CPU seconds")


def main() -> None:
    """Run what is missing, summarise, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/moe_study"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="a change of the config")
    parser.add_argument("--parts", nargs="*", choices=[*PARTS], default=[*PARTS], help="none: only gather")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with ExitStack() as stack:
        seeds = [Seed(args.folder, seed, stack, args.set) for seed in range(args.seeds)]
        for part in args.parts:
            for seed in seeds:
                PARTS[part](seed)
        found = summary(seeds)
    if args.json:
        write_json(args.json, found)
    show(found)


if __name__ == "__main__":
    main()
