"""A space whose layers differ, and a budget with every kind of limit on it."""

from llmnas.cost import Budget, Workload
from llmnas.space import SearchSpace

DIMENSIONS = {
    "kv_heads": {"choices": [1, 2, 4], "per_layer": True},
    "queries_per_group": {"choices": [1, 2]},
    "head_dim": {"choices": [8, 16], "per_layer": True},
    "ffn_size": {"choices": [32, 64, 128, 256], "per_layer": True},
}
WIDE = SearchSpace.from_dict(
    {"base": {"vocab_size": 200}, "layers": 6, "hidden_size": [32, 48, 64], "depth": [3, 4, 6], **DIMENSIONS}
)
ALL_LIMITS = Budget(
    min_params=60_000,
    max_params=140_000,
    min_flops_per_token=200_000,
    max_flops_per_token=380_000,
    max_memory_bytes=400_000,
    workload=Workload(batch=1, context=128),
)
