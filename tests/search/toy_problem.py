"""A search problem made of the space's own numbers, small enough to know its optimum; also a program to be killed."""

import itertools
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from llmnas.cost import Budget, count_params
from llmnas.search import STRATEGIES, search
from llmnas.space import Architecture, LayerSpec, SearchSpace, encode

SPACE = SearchSpace.from_dict(
    {
        "base": {"vocab_size": 64},
        "layers": 4,
        "hidden_size": [32, 64, 96],
        "depth": [2, 3, 4],
        "kv_heads": [1, 2],
        "queries_per_group": [1, 2],
        "head_dim": [8, 16],
        "ffn_size": {"choices": [32, 64, 128], "per_layer": True},
    }
)
BUDGET = Budget(max_params=70_000)
TWO = {"val_loss": "min", "params": "min"}
ONE = {"val_loss": "min"}
REFERENCE = {"val_loss": 5.0, "params": 150_000.0}
LIGHT = {
    "bayes": {"start": 8, "pool": 32},
    "reinforce": {"start": 8, "epochs": 2},
    "ofa": {"samples": 16, "population": 16, "generations": 2},
    "mip": {"scoring": 0.9},
}
"""Options of the strategies that fit models, for tests of what does not depend on how well they search."""
EACH = [pytest.param(name, marks=[pytest.mark.full] if name in {"bayes", "ofa"} else []) for name in STRATEGIES]
"""Every strategy; those that take seconds in the long version of the tests."""
KILLED_RUN = {"budget": BUDGET, "evaluations": 60, "seed": 3, "batch": 4}


def members(space: SearchSpace) -> list[Architecture]:
    """Every architecture of the space."""
    found = []
    for hidden_size, shared in itertools.product(space.hidden_size, space.settings(space.shared_dimensions)):
        layer = [LayerSpec(**shared, **own) for own in space.settings(space.layer_dimensions)]
        for layers in itertools.product([None, *layer], repeat=space.layers):
            kept = tuple(i for i, spec in enumerate(layers) if spec)
            if kept and space.allows(kept):
                found.append(Architecture(hidden_size, layers))
    return found


def params(arch: Architecture) -> float:
    return float(count_params(arch, SPACE.base).total)


def val_loss(arch: Architecture) -> float:
    """Wider and deeper is better, later layers gain most, and sizes that do not fit each other cost."""
    gain = 0.6 * math.log(arch.hidden_size / 16)
    for i, spec in arch.kept:
        gain += 0.1 * (i + 1) * math.log(spec.ffn_size / 16) + 0.1 * math.log(spec.q_heads * spec.head_dim)
        gain -= 0.15 * abs(math.log(spec.ffn_size / arch.hidden_size))
    return 5.0 - gain


def measure(archs: Sequence[Architecture]) -> list[dict[str, float]]:
    return [{"val_loss": val_loss(arch), "params": params(arch)} for arch in archs]


def distance(a: Architecture, b: Architecture) -> int:
    """In how many decisions two architectures of the same kept layers differ."""
    return int((encode(SPACE, a) != encode(SPACE, b)).sum())


def main(strategy: str, archive: str, diary: str, moment: str, count: int) -> None:
    """Search, noting every evaluated architecture; from `count` evaluations on, die by SIGKILL or grow slow."""

    def die(now: str, at: int) -> None:
        if now == moment and at >= count:
            os.kill(os.getpid(), signal.SIGKILL)
        if moment == "slow" and at >= count:
            time.sleep(0.03)

    def evaluate(archs: Sequence[Architecture]) -> list[dict[str, float]]:
        for arch in archs:
            with Path(diary).open("a") as stream:
                stream.write(arch.id + "\n")
            die("evaluating", len(Path(diary).read_text().split()))
        return measure(archs)

    search(
        SPACE, evaluate, strategy, archive_path=archive, options=LIGHT.get(strategy, {}),
        on_progress=lambda a: die("stored", len(a)), **KILLED_RUN,
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:5], count=int(sys.argv[5]))
