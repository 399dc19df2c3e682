"""llmnas: the best transformer language-model architecture for a budget."""

from llmnas.space import Architecture, BaseModel, LayerSpec, SearchSpace

__all__ = ["Architecture", "BaseModel", "LayerSpec", "SearchSpace"]
__version__ = "0.1.0"
