"""All strategies on one synthetic problem, and what they cost beside real evaluations.

    python benchmarks/strategies.py compare --evaluations 200 --seeds 5
    python benchmarks/strategies.py overhead

`compare`: two objectives on a space of 12 layers; every number is computed, so runs are exactly repeatable. Writes
JSON and a picture. `overhead`: CPU seconds that a strategy takes for a candidate with 200, 1,000 and 10,000 evaluations
in the archive, against a real evaluation by an untrained supernet (weights do not change its time). Writes JSON.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from interleave import environment

from llmnas.archive import Archive
from llmnas.cost import Workload, count_params
from llmnas.evaluate.evaluator import Evaluator
from llmnas.files import read_json, write_json
from llmnas.pareto import Evaluation
from llmnas.report.plots import Band, comparison_png
from llmnas.search import STRATEGIES, Problem, load_strategy, search
from llmnas.search.compare import compare
from llmnas.space import Architecture, SearchSpace
from llmnas.supernet import Transformer

SPACE = SearchSpace.from_dict(
    {
        "base": {"vocab_size": 4096, "max_seq": 256},
        "layers": 12,
        "hidden_size": [128, 192, 256],
        "depth": [6, 8, 10, 12],
        "kv_heads": {"choices": [1, 2, 4], "per_layer": True},
        "queries_per_group": [1, 2],
        "head_dim": [32],
        "ffn_size": {"choices": [256, 512, 768, 1024], "per_layer": True},
    }
)
GOALS = {"val_loss": "min", "params": "min"}
BATCH = 8
FITTING = ("bayes", "ofa", "reinforce", "mip")
"""Strategies that learn for seconds: they are told many evaluations at once."""
RESULTS = Path(__file__).parent / "results"


def measure(archs: Sequence[Architecture]) -> list[dict[str, float]]:
    """A loss with diminishing returns, layers of unequal worth, and a dependence between neighbours."""
    rows = []
    for arch in archs:
        gain, before = 0.0, None
        for i, spec in arch.kept:
            worth = 0.5 + math.sin(1.3 * i) ** 2
            gain += worth * (0.06 * math.log(spec.ffn_size / 128) + 0.03 * math.log(2 * spec.kv_heads))
            if before is not None:
                gain -= 0.02 * abs(math.log(spec.ffn_size / before.ffn_size))
            before = spec
        loss = 5.0 - gain - 0.4 * math.log(arch.hidden_size / 64)
        rows.append({"val_loss": loss, "params": float(count_params(arch, SPACE.base).total)})
    return rows


def run_comparison(strategies: list[str], evaluations: int, seeds: int) -> None:
    """Print and write the share of the best known hypervolume."""
    found = compare(
        lambda name, seed: search(SPACE, measure, name, GOALS, evaluations=evaluations, seed=seed, batch=BATCH),
        strategies, range(seeds), evaluations, on_run=lambda name, seed: print(f"{name}, seed {seed}", flush=True),
    )  # fmt: skip
    bands = [Band(n, c.at, c.mean.tolist(), c.low.tolist(), c.high.tolist()) for n, c in found.curves.items()]
    write_json(RESULTS / f"strategies_{evaluations}.json", found.to_dict())
    comparison_png(RESULTS / f"strategies_{evaluations}.png", bands)
    shown = [n for n in (50, 200, 1000) if n <= evaluations]
    print("strategy    " + "".join(f"{n:>26}" for n in shown))
    for name, curve in found.curves.items():
        cells = []
        for n in shown:
            k = curve.at.index(n)
            p = "" if curve.p_random is None else f" p {curve.p_random[k]:.2g}"
            cells.append(f"{curve.mean[k]:.3f} [{curve.low[k]:.3f}, {curve.high[k]:.3f}]{p}")
        print(f"{name:12}" + "".join(f"{cell:>26}" for cell in cells))


def candidate_seconds(archs: Sequence[Architecture]) -> float:
    """Mean CPU seconds of a real evaluation: 32 windows of 256 tokens on an untrained supernet."""
    windows = np.random.default_rng(0).integers(SPACE.base.vocab_size, size=(32, SPACE.base.max_seq + 1))
    evaluator = Evaluator(Transformer(SPACE, seed=0).eval(), windows, len(windows), 4.0, Workload())
    begin = time.process_time()
    evaluator(archs)
    return (time.process_time() - begin) / len(archs)


def by_searching(name: str, told: list[int]) -> list[tuple[int, float]]:
    """(evaluations, CPU seconds a candidate of the last tenth before them), all but the evaluations themselves.

    One search to the greatest number of `told`, whose archive is a file.
    """
    spent, at = 0.0, {}

    def evaluate(archs: Sequence[Architecture]) -> list[dict[str, float]]:
        nonlocal spent
        begin = time.process_time()
        rows = measure(archs)
        spent += time.process_time() - begin
        return rows

    def note(archive: Archive) -> None:
        at[len(archive)] = time.process_time() - spent

    with tempfile.TemporaryDirectory() as folder:
        search(SPACE, evaluate, name, GOALS, evaluations=max(told), batch=BATCH, on_progress=note,
               archive_path=Path(folder) / "archive.sqlite").close()  # fmt: skip
    found = []
    for count in told:
        last = max(n for n in at if n <= count)
        first = max(n for n in at if n <= max(0.9 * count, BATCH))
        found.append((count, (at[last] - at[first]) / (last - first)))
    return found


def by_telling(name: str, count: int, **options: int) -> tuple[float, float]:
    """(CPU seconds a candidate of `ask` + `tell`, seconds of the longest `ask`, which learns hyperparameters).

    The strategy is told `count` random evaluations at once: it would take hours to ask for all of them.
    """
    rng = np.random.default_rng(0)
    archs = list(dict.fromkeys(SPACE.sample(rng) for _ in range(count + count // 10)))[:count]
    kind, make = load_strategy(name)
    strategy = make(Problem(SPACE, GOALS, {}, None, 0), kind(**options))
    strategy.tell([Evaluation(a, m, None, i) for i, (a, m) in enumerate(zip(archs, measure(archs), strict=True))])
    times = []
    for _ in range(7):  # `mip` asks for networks of its own twice before it learns
        begin = time.process_time()
        asked = strategy.ask(BATCH)
        asking = time.process_time() - begin
        told = [Evaluation(a, m) for a, m in zip(asked, measure(asked), strict=True)]
        begin = time.process_time()
        strategy.tell(told)
        times.append(asking + time.process_time() - begin)
    return statistics.median(times[2:]) / BATCH, max(times)


def run_overhead(strategies: list[str], told: list[int]) -> None:
    """Print and write what a strategy takes of the loop with so many evaluations in the archive, two objectives."""
    rng = np.random.default_rng(1)
    real = candidate_seconds([SPACE.sample(rng) for _ in range(4)])
    print(f"a candidate: {real:.3f} s", flush=True)
    path = RESULTS / "strategies_overhead.json"
    rows = read_json(path)["rows"] if path.exists() else []  # strategies may be measured one at a time

    def add(name: str, count: int, seconds: float, how: str, learning: float | None = None) -> None:
        share = seconds / (seconds + real)
        rows[:] = [row for row in rows if (row["strategy"], row["evaluations"]) != (name, count)]
        rows.append({"strategy": name, "evaluations": count, "seconds_a_candidate": seconds, "share": share,
                     "measured": how, "first_ask_seconds": learning, "evaluation_seconds": real})  # fmt: skip
        first = "" if learning is None else f"; first ask {learning:.2f} s"
        print(f"{name:18} {count:6}: {1000 * seconds:8.2f} ms a candidate, {share:6.2%} of the loop{first}", flush=True)

    for name in strategies:
        if name in FITTING:
            for count in told:
                seconds, learning = by_telling(name, count)
                add(name, count, seconds, "told at once", learning)
        else:
            for count, seconds in by_searching(name, told):
                add(name, count, seconds, "searched")
    if "bayes" in strategies:
        found = by_telling("bayes", max(told), points=1000)
        add("bayes, points 1000", max(told), found[0], "told at once", found[1])
    about = environment("cpu", ("torch", "botorch", "gpytorch", "pymoo", "numpy"))
    write_json(path, {"environment": about, "batch": BATCH, "rows": sorted(rows, key=lambda row: row["strategy"])})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["compare", "overhead"])
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--told", type=int, nargs="+", default=[200, 1000, 10_000])
    args = parser.parse_args()
    if args.what == "compare":
        run_comparison(args.strategies, args.evaluations, args.seeds)
    else:
        run_overhead(args.strategies, args.told)


if __name__ == "__main__":
    main()
