"""A small search and its training records."""

import json
import math

import numpy as np

from llmnas.pareto import Evaluation, front
from llmnas.report.html import Findings, Table
from llmnas.space import SearchSpace

SPACE = SearchSpace.from_dict(
    {
        "base": {"vocab_size": 64},
        "layers": 4,
        "hidden_size": [32, 64],
        "depth": [2, 3, 4],
        "kv_heads": [1, 2],
        "queries_per_group": 2,
        "head_dim": 8,
        "ffn_size": {"choices": [32, 64], "per_layer": True},
    }
)
TWO = {"val_loss": "min", "params": "min"}
RECORDS = [
    {"stage": "supernet", "step": step, "time": 1.0, "train_loss": 6.0 - step / 100, "lr": 0.01} for step in (10, 20)
] + [{"stage": "supernet", "step": 20, "val_loss_smallest": 6.1, "val_loss_largest": 5.9, "val_loss_random": 6.0}]
TABLE = Table("Pareto front", ("architecture", "loss"), [("abc", "5.0")], "one seed")
CORRELATION = {
    "id": [f"network{i}" for i in range(3)],
    "supernet_loss": [4.0, 4.1, 4.2],
    "stand_alone_loss": [[3.5, 3.7, 3.6], [3.6, 3.6, 3.8]],
    "params": [1000, 1010, 990],
    "agreement": {
        "supernet": {"tau": 0.33, "low": -1.0, "high": 1.0, "spearman": 0.5},
        "params_only": {"tau": float("nan"), "low": -1.0, "high": 1.0, "spearman": float("nan")},
    },
}
LADDER = [
    {
        "depth": len(kept), "layers": 4, "kept": kept, "params": 100 * len(kept), "loss": 7.0 - len(kept),
        "first_layers": 7.5 - len(kept), "even_layers": 7.25 - len(kept), "alone": [6.5 - len(kept), 7.0 - len(kept)],
    }
    for kept in ([0, 2], [0, 1, 3])
]  # fmt: skip


def evaluation(index, failure=None, space=SPACE, **metrics):
    return Evaluation(space.sample(np.random.default_rng(index)), metrics, failure, index)


EVALUATIONS = [evaluation(i, val_loss=5.9 - i / 20 + (7 * i % 10) / 20, params=1000.0 + 100 * i) for i in range(10)]
FRONT = front(EVALUATIONS, TWO)  # evaluations 0, 3, 6 and 9


# a larger search, over layers of every kind
KINDS = SearchSpace.from_dict(
    {
        "base": {"vocab_size": 64},
        "layers": 6,
        "hidden_size": [32, 64, 96],
        "depth": [2, 3, 4, 5, 6],
        "kv_heads": {"choices": [1, 2], "per_layer": True},
        "queries_per_group": {"choices": [1, 2, 3], "per_layer": True},
        "head_dim": {"choices": [8, 16], "per_layer": True},
        "ffn_size": {"choices": [32, 64, 128], "per_layer": True},
        "weights": {"choices": ["ternary", "dense"], "per_layer": True},
        "mixer": {"choices": ["none", "mlgru", "attention"], "per_layer": True},
        "experts": {"choices": [1, 4], "per_layer": True},
        "top_k": {"choices": [1, 2], "per_layer": True},
    }
)


def many(count, seed=0):
    """Evaluations whose loss falls with size, with noise, of layers of every kind."""
    rng = np.random.default_rng(seed)
    found, seen = [], set()
    while len(found) < count:
        arch = KINDS.sample(rng)
        if arch in seen:
            continue
        seen.add(arch)
        params = float(1000 * arch.hidden_size * arch.depth + rng.integers(1000))
        loss = float(6 - 0.3 * math.log(params / 1e4) + abs(rng.normal()) * 0.2)
        metrics = {"val_loss": loss, "params": params, "latency_ms": params / 1e5 * float(rng.uniform(1, 1.5))}
        found.append(Evaluation(arch, metrics, None, len(found)))
    return found


MANY = many(60)
MANY_FRONT = sorted(front(MANY, TWO), key=lambda e: e.metrics["params"])
ALL_SECTIONS = {"evaluations": MANY, "correlation": CORRELATION, "ladder": LADDER}


def findings(**changes):
    given = {
        "title": "a run",
        "summary": {"architectures": "1,000"},
        "evaluations": EVALUATIONS,
        "objectives": TWO,
        "constraints": {},
        "records": RECORDS,
        "tables": [TABLE],
    }
    return Findings(**{**given, **changes})


def left_by_stages(run):
    """Leave in the run folder what `correlate` and `ladder` do, of which CORRELATION and LADDER are what is drawn."""
    layers = EVALUATIONS[0].arch.to_dict()["layers"]
    rungs = [
        {
            **rung,
            "tried": 4,
            "exhaustive": True,
            "chosen_loss": 4.0,
            "architecture": {"hidden_size": 32, "layers": layers},
        }
        for rung in LADDER
    ]
    written = {
        "correlate": {**CORRELATION, "architectures": [e.arch.to_dict() for e in EVALUATIONS[:3]]},
        "ladder": {"windows": 8, "seeds": 2, "rungs": [{k: v for k, v in r.items() if k != "layers"} for r in rungs]},
    }
    for stage, value in written.items():
        run.result(stage).parent.mkdir()
        run.result(stage).write_text(json.dumps(value))
