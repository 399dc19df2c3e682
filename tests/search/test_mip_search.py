"""Programs on learned scores: optimal where the metric adds up; other metrics, limits that programs lack."""

from collections.abc import Sequence

import numpy as np
import pytest
from toy_problem import SPACE, TWO, measure, members, params, val_loss

from llmnas.cost import Budget
from llmnas.errors import UserError
from llmnas.pareto import Evaluation
from llmnas.search import Problem, search
from llmnas.search.mip_search import MipOptions, MipSearch
from llmnas.space import Architecture, SearchSpace

SMALL = SearchSpace.from_dict(
    {
        "base": {"vocab_size": 64},
        "layers": 4,
        "hidden_size": [32, 48],
        "depth": [2, 3, 4],
        "kv_heads": 1,
        "queries_per_group": [1, 2],
        "head_dim": 8,
        "ffn_size": {"choices": [16, 64, 128], "per_layer": True},
    }
)


def additive(archs: Sequence[Architecture]) -> list[dict[str, float]]:
    """Arbitrary scores of blocks, other ones in every cell and layer."""
    rows = []
    for arch in archs:
        cell = arch.hidden_size / 16 + next(spec.queries_per_group for _, spec in arch.kept)
        sizes = [0 if spec is None else spec.ffn_size for spec in arch.layers]
        loss = 9.0 - 0.1 * cell + sum(np.sin(3 * i + 0.1 * size + cell) for i, size in enumerate(sizes))
        rows.append({"val_loss": float(loss), "params": params(arch)})
    return rows


def told(archs: Sequence[Architecture]) -> list[Evaluation]:
    return [Evaluation(arch, row) for arch, row in zip(archs, additive(archs), strict=True)]


@pytest.mark.parametrize("objectives", [{"val_loss": "min"}, TWO], ids=["one", "two"])
def test_where_scores_add_up_programs_are_solved_to_the_optimum_once_all_blocks_are_scored(objectives):
    free = {e.arch: e.metrics["val_loss"] for e in told(members(SMALL))}
    strategy = MipSearch(Problem.of(SMALL, objectives, {}, None, 0), MipOptions(scoring=1.0))
    first, replacements = 3 + 4, 4 * SMALL.layers * 3
    for asked in range((first + replacements) // 8 + 4):
        batch = strategy.ask(8)
        strategy.tell(told(batch))
        for i, arch in enumerate(batch):
            if 8 * asked > first + replacements:  # a solution: nothing that is left is better for its target
                limit = params(arch) if "params" in objectives else np.inf
                left = [loss for a, loss in free.items() if a not in batch[:i] and params(a) <= limit]
                assert free[arch] <= min(left) + 0.01
        for arch in batch:
            del free[arch]


def test_a_second_measured_metric_is_learned_too():
    """What is no closed form is a sum of learned scores: here a latency, and a cost with a name that is taken."""

    def timed(archs: Sequence[Architecture]) -> list[dict[str, float]]:
        return [
            {
                "val_loss": row["val_loss"],
                "latency_ms": 1 + 0.2 * arch.depth + row["params"] / 1e5,
                "params": arch.depth,
            }
            for arch, row in zip(archs, measure(archs), strict=True)
        ]

    goals = {"val_loss": "min", "latency_ms": "min"}
    reference = {"val_loss": 5.0, "latency_ms": 3.5}
    asked = {"objectives": goals, "constraints": {"params": (3, None)}, "evaluations": 48}
    ours, random = (search(SPACE, timed, name, **asked) for name in ("mip", "random"))
    assert ours.hypervolume(reference) > random.hypervolume(reference)
    late = ours.evaluations[24:]
    assert sum(e.arch.depth >= 3 for e in late) > 0.8 * len(late)


def test_a_failed_width_is_left_and_the_rest_is_searched():
    def fragile(archs: Sequence[Architecture]) -> list[dict[str, float]]:
        failed = {"val_loss": float("nan")}
        return [row | (failed if a.hidden_size == 96 else {}) for a, row in zip(archs, measure(archs), strict=True)]

    archive = search(SPACE, fragile, "mip", {"val_loss": "min"}, evaluations=56)
    best = min(val_loss(arch) for arch in members(SPACE) if arch.hidden_size < 96)
    assert archive.front()[0].metrics["val_loss"] == pytest.approx(best)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (
            {"budget": Budget(min_memory_bytes=400_000)},
            "budget.min_memory_bytes: mip knows upper limits on memory only",
        ),
        (
            {"constraints": {"memory_bytes": (1e5, None)}},
            "constraints: memory_bytes from below: mip knows upper limits",
        ),
        ({"objectives": {"val_loss": "min", "memory_bytes": "max"}}, "objectives: memory_bytes: max: mip knows upper"),
    ],
)
def test_limits_that_programs_lack_are_refused_before_anything_is_evaluated(problem, message):
    with pytest.raises(UserError, match=message):
        search(SPACE, lambda _: pytest.fail("evaluated"), "mip", **problem)
