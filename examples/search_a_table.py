"""Search with a function of your own: nothing is trained, no torch is loaded.

    python examples/search_a_table.py

The "measurement" is a formula here; in its place may stand a table, a surrogate, a simulator or a lab.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmnas import Architecture, Budget, SearchSpace, count_params
from llmnas.search import search

SPACE = SearchSpace.from_dict(
    {
        "base": {"vocab_size": 4096, "tied": True, "max_seq": 256},
        "layers": 8,
        "hidden_size": [64, 96, 128],
        "depth": [2, 4, 6, 8],
        "kv_heads": {"choices": [1, 2], "per_layer": True},
        "queries_per_group": 2,
        "head_dim": 16,
        "ffn_size": {"choices": [128, 256, 384], "per_layer": True},
    }
)


def evaluate(architectures: Sequence[Architecture]) -> list[dict[str, float]]:
    """A loss that falls with parameters and with depth, and the parameters themselves."""
    found = []
    for arch in architectures:
        params = count_params(arch, SPACE.base).total
        found.append({"val_loss": 20 * params**-0.1 + 0.3 / arch.depth, "params": params})
    return found


def main() -> None:
    """Print the front that NSGA-II finds within a million parameters."""
    objectives = {"val_loss": "min", "params": "min"}
    archive = search(SPACE, evaluate, "nsga2", objectives, Budget(max_params=1_000_000), evaluations=200, seed=0)
    print(f"{SPACE.size():,} architectures, {len(archive)} evaluated, front:")
    for evaluation in sorted(archive.front(), key=lambda e: e.metrics["params"]):
        metrics, arch = evaluation.metrics, evaluation.arch
        print(f"{arch.id}  {metrics['params']:>9,.0f} parameters  {metrics['val_loss']:.4f}  {arch.depth} layers")


if __name__ == "__main__":
    main()
