"""All strategies on one synthetic problem, and what they cost beside real evaluations.

    python benchmarks/strategies.py compare --evaluations 200 --seeds 5
    python benchmarks/strategies.py overhead

`compare`: two objectives on a space of 12 layers; every number is computed, so runs are exactly repeatable. Writes
JSON and a picture. `overhead`: seconds of `ask` + `tell` a batch with 200, 1,000 and 10,000 evaluations told, against
the evaluation of the same batch by an untrained supernet (weights do not change its time), measured in turn.
"""

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmnas.cost import Workload, count_params
from llmnas.evaluate.evaluator import Evaluator
from llmnas.files import write_json
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


def run_overhead(strategies: list[str], told: list[int]) -> None:
    """Print the share of a strategy in the loop, with so many evaluations told, one and two objectives."""
    rng = np.random.default_rng(0)
    archs = list(dict.fromkeys(SPACE.sample(rng) for _ in range(11_000)))
    windows = rng.integers(SPACE.base.vocab_size, size=(32, SPACE.base.max_seq + 1), dtype=np.int64)
    evaluator = Evaluator(Transformer(SPACE, seed=0).eval(), windows, len(windows), 4.0, Workload())
    rows = []
    for name in strategies:
        for count in told:
            kind, make = load_strategy(name)
            strategy = make(Problem(SPACE, GOALS, {}, None, 0), kind())
            evaluations = [
                Evaluation(a, m, None, i)
                for i, (a, m) in enumerate(zip(archs[:count], measure(archs[:count]), strict=True))
            ]
            if name != "nsga2":  # it takes generations of its own only, and forgets all but the last
                strategy.tell(evaluations)
            asked = strategy.ask(BATCH)  # the first one fits hyperparameters: once a third more data
            strategy.tell([Evaluation(a, m) for a, m in zip(asked, measure(asked), strict=True)])
            ours, theirs = [], []
            for _ in range(3):
                start = time.process_time()
                asked = strategy.ask(BATCH)
                strategy.tell([Evaluation(a, m) for a, m in zip(asked, measure(asked), strict=True)])
                middle = time.process_time()
                evaluator(asked[:2])
                ours.append(middle - start)
                theirs.append((time.process_time() - middle) * len(asked) / 2)
            own, real = statistics.median(ours), statistics.median(theirs)
            rows.append({"strategy": name, "told": count, "seconds": own, "evaluation_seconds": real})
            print(f"{name:12} {count:6} told: {1000 * own:7.1f} ms a batch of {BATCH}, evaluation {real:6.2f} s: "
                  f"{100 * own / (own + real):5.2f} % of the loop", flush=True)  # fmt: skip
    write_json(RESULTS / "strategies_overhead.json", rows)


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
