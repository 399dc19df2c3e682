"""How well the latency table predicts networks that were never measured for it, on this CPU.

    python benchmarks/latency_prediction.py [--quick] [--spaces dense_1m wide low_bit]

For each space and phase: the block table is measured first, as a run does it; then networks to learn the
correction from, and held-out ones, all in turn, round after round. Then the held-out ones once more, later: how much
these two measurements of the same networks differ is the noise floor, which no prediction can beat.
The clock is the measuring thread's own CPU time, so that a core shared with others does not count; caches, memory
and the clock rate are still shared with them, and that is in the floor.
Writes benchmarks/results/latency_prediction.json; spaces that were left out keep their rows.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from llmnas.cost import Workload, count_params, decode_flops_per_token, prefill_flops_per_token
from llmnas.cost.correction import Corrected
from llmnas.cost.latency import PHASES, Phase
from llmnas.evaluate.measure import Bench, measure_latency, measure_table, this_device
from llmnas.files import read_json, write_json
from llmnas.rng import generator
from llmnas.space import SearchSpace

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "latency_prediction.json"
WIDE = {
    "base": {"vocab_size": 4096, "max_seq": 256},
    "layers": 8,
    "hidden_size": list(range(128, 385, 32)),
    "depth": [2, 3, 4, 5, 6, 7, 8],
    "kv_heads": {"choices": [1, 2, 4], "per_layer": True},
    "queries_per_group": {"choices": [1, 2], "per_layer": True},
    "head_dim": {"choices": [32, 48, 64], "per_layer": True},
    "ffn_size": {"choices": list(range(128, 1025, 64)), "per_layer": True},
}
LOW_BIT = {
    "base": {"vocab_size": 4096, "max_seq": 256},
    "layers": 6,
    "hidden_size": [256, 384, 512],
    "depth": [2, 3, 4, 5, 6],
    "kv_heads": {"choices": [2, 4], "per_layer": True},
    "queries_per_group": 2,
    "head_dim": 32,
    "ffn_size": {"choices": list(range(256, 1537, 128)), "per_layer": True},
    "weights": {"choices": ["dense", "ternary", "binary"], "per_layer": True},
    "mixer": {"choices": ["attention", "mlgru"], "per_layer": True},
}


def scores(predicted: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    """Mean absolute relative error, its sign, the worst one, and rank agreement."""
    error = predicted / measured - 1
    return {
        "mape": float(np.abs(error).mean()), "bias": float(error.mean()), "worst": float(np.abs(error).max()),
        "tau": float(stats.kendalltau(predicted, measured).statistic),
    }  # fmt: skip


def straight_line(x: np.ndarray, y: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """Least squares of relative errors on one number and a constant."""
    rows = np.column_stack([x, np.ones_like(x)]) / y[:, None]
    weights = np.linalg.lstsq(rows, np.ones_like(y), rcond=None)[0]
    return np.column_stack([unseen, np.ones_like(unseen)]) @ weights


def one(space: SearchSpace, phase: Phase, workload: Workload, bench: Bench, held: int, learn: int, seconds: float) -> dict[str, Any]:  # fmt: skip  # noqa: E501
    """One space and phase."""
    load = os.getloadavg()[0]
    table = measure_table(space, phase, workload, bench, seconds)
    rng = generator(0, "latency benchmark")
    drawn = list(dict.fromkeys(space.sample(rng) for _ in range(2 * (held + learn))))[: held + learn]
    first = measure_latency(drawn, space.base, phase, workload, bench, 2 * seconds)
    again = measure_latency(drawn[learn:], space.base, phase, workload, bench, 2 * seconds)
    ms = np.array([timing.ms for timing in first])
    later = np.array([timing.ms for timing in again])
    seen, unseen, truth = drawn[:learn], drawn[learn:], ms[learn:]
    began = time.perf_counter()
    summed = np.array([table.latency_ms(arch) for arch in unseen])
    each = (time.perf_counter() - began) / len(unseen)
    corrected = Corrected.fit(table, seen, ms[:learn].tolist())
    flops = prefill_flops_per_token if phase == "prefill" else decode_flops_per_token
    baselines = {}
    for name, number in (
        ("params_only", lambda a: count_params(a, space.base).total),
        ("flops_only", lambda a: flops(a, space.base, workload.tokens(space.base))),
    ):
        x = np.array([number(arch) for arch in drawn], dtype=float)
        baselines[name] = scores(straight_line(x[:learn], ms[:learn], x[learn:]), truth)
    floor = float((2 * np.abs(truth - later) / (truth + later)).mean())
    table_scores = scores(summed, truth)
    return {
        "held_out": len(unseen), "learned_from": learn, "mean_ms": float(truth.mean()),
        "least_ms": float(truth.min()), "most_ms": float(truth.max()),
        "table_seconds": table.seconds, "table_noise": table.noise, "predict_us": 1e6 * each,
        "noise_floor": floor, "noise_floor_tau": float(stats.kendalltau(truth, later).statistic),
        "drift": float((later / truth).mean() - 1), "rounds": first[0].rounds,
        "table": table_scores, "table_against_later": scores(summed, later),
        "corrected": scores(np.array([corrected.latency_ms(arch) for arch in unseen]), truth),
        **baselines, "load_average": [load, os.getloadavg()[0]],
        "target_met": table_scores["mape"] <= max(0.05, 2 * floor) and table_scores["tau"] >= 0.9
        and table.seconds < 300,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few networks, to see that it works; writes nothing")
    spaces = {
        "dense_1m": (SearchSpace.from_yaml(ROOT / "search_configs" / "dense_1m.yaml"), 256),
        "wide": (SearchSpace.from_dict(WIDE), 128),
        "low_bit": (SearchSpace.from_dict(LOW_BIT), 128),
    }
    parser.add_argument("--spaces", nargs="+", choices=list(spaces), default=list(spaces))
    arguments = parser.parse_args()
    held, learn, seconds = (10, 8, 2.0) if arguments.quick else (120, 40, 60.0)
    bench = this_device()
    results = read_json(RESULT)["results"] if RESULT.exists() else {}
    for name in arguments.spaces:
        space, context = spaces[name]
        for phase in PHASES:
            found = one(space, phase, Workload(1, context), bench, held, learn, seconds)
            results[f"{name}_{phase}"] = {"context": context, **found}
            print(
                f"{name} {phase}: MAPE {found['table']['mape']:.2%}, tau {found['table']['tau']:.3f}, corrected "
                f"{found['corrected']['mape']:.2%} {found['corrected']['tau']:.3f}, floor {found['noise_floor']:.2%}, "
                f"table in {found['table_seconds']:.0f} s",
                flush=True,
            )
            if not arguments.quick:
                write_json(RESULT, {"device": bench.fingerprint, "results": results})


if __name__ == "__main__":
    main()
