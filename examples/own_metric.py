"""A metric of your own in a search: the longest text that fits into a cache of one megabyte.

    llmnas search my.yaml --objective examples/own_metric.py:tokens_in_a_megabyte=max

A metric is a function of an architecture and of what all architectures of the space share.
"""

from __future__ import annotations

from llmnas import Architecture, BaseModel

FLOAT_BYTES = 4


def tokens_in_a_megabyte(arch: Architecture, base: BaseModel) -> float:
    """Tokens whose keys and values take 1 MB, at most the longest sequence of the space."""
    a_token = sum(2 * spec.kv_heads * spec.head_dim * FLOAT_BYTES for _, spec in arch.kept if spec.mixer == "attention")
    return min(base.max_seq, 1_000_000 / a_token) if a_token else base.max_seq
