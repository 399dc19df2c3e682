"""The elastic transformer and cutting sub-networks out of it."""

from llmnas.nn.cross_entropy import token_losses
from llmnas.nn.elastic_linear import grids
from llmnas.nn.loss import Losses, Teacher
from llmnas.nn.moe import Experts
from llmnas.supernet.blocks import Box, active_boxes, hull, union, used_blocks
from llmnas.supernet.extract import extract, stand_alone_shape
from llmnas.supernet.model import Transformer, document_numbers
from llmnas.supernet.packed import pack, packable, unpack
from llmnas.supernet.packed_file import load_packed, save_packed
from llmnas.supernet.weights import fill_weights, load_weights, save_weights
from llmnas.supernet.windows import split_windows

__all__ = [
    "Box",
    "Experts",
    "Losses",
    "Teacher",
    "Transformer",
    "active_boxes",
    "document_numbers",
    "extract",
    "fill_weights",
    "grids",
    "hull",
    "load_packed",
    "load_weights",
    "pack",
    "packable",
    "save_packed",
    "save_weights",
    "split_windows",
    "stand_alone_shape",
    "token_losses",
    "union",
    "unpack",
    "used_blocks",
]
