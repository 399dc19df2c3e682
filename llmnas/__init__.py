"""llmnas: the best transformer language-model architecture for a budget."""

from llmnas.cost import Budget, count_params
from llmnas.space import Architecture, BaseModel, LayerSpec, SearchSpace
from llmnas.waiting import wait_passively

wait_passively()  # nothing above loads torch, which reads it once

__all__ = ["Architecture", "BaseModel", "Budget", "LayerSpec", "SearchSpace", "count_params"]
__version__ = "0.1.0"
