"""The elastic transformer and cutting sub-networks out of it."""

from llmnas.nn.loss import Losses, Teacher
from llmnas.supernet.extract import extract, stand_alone_shape
from llmnas.supernet.model import Transformer

__all__ = ["Losses", "Teacher", "Transformer", "extract", "stand_alone_shape"]
