"""The elastic transformer and cutting sub-networks out of it."""

from llmnas.nn.cross_entropy import token_losses
from llmnas.nn.loss import Losses, Teacher
from llmnas.nn.moe import Experts
from llmnas.supernet.extract import extract, stand_alone_shape, used_blocks
from llmnas.supernet.model import Transformer, document_numbers
from llmnas.supernet.packed import pack, packable, unpack
from llmnas.supernet.packed_file import load_packed, save_packed
from llmnas.supernet.weights import fill_weights, load_weights, save_weights

__all__ = [
    "Experts",
    "Losses",
    "Teacher",
    "Transformer",
    "document_numbers",
    "extract",
    "fill_weights",
    "load_packed",
    "load_weights",
    "pack",
    "packable",
    "save_packed",
    "save_weights",
    "stand_alone_shape",
    "token_losses",
    "unpack",
    "used_blocks",
]
