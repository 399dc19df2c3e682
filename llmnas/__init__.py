"""llmnas: the best transformer language-model architecture for a budget."""

from llmnas.cost import Budget, count_params
from llmnas.space import Architecture, BaseModel, LayerSpec, SearchSpace

__all__ = ["Architecture", "BaseModel", "Budget", "LayerSpec", "SearchSpace", "count_params"]
__version__ = "0.1.0"
