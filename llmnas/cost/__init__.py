"""What an architecture costs, in closed form, and drawing architectures under a budget."""

from llmnas.cost.budget import COSTS, Budget, costs
from llmnas.cost.flops import decode_flops_per_token, operations_by_kind, prefill_flops_per_token
from llmnas.cost.hand import FAMILIES, hand_designed
from llmnas.cost.memory import Memory, Workload, memory
from llmnas.cost.params import ParamCount, count_params
from llmnas.cost.sampler import BudgetSampler, bands, sample

__all__ = [
    "COSTS",
    "FAMILIES",
    "Budget",
    "BudgetSampler",
    "Memory",
    "ParamCount",
    "Workload",
    "bands",
    "costs",
    "count_params",
    "decode_flops_per_token",
    "hand_designed",
    "memory",
    "operations_by_kind",
    "prefill_flops_per_token",
    "sample",
]
