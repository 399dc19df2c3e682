"""Blocks of weights inside flat partitions: index ranges against masks."""

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmnas.supernet import union
from llmnas.train.fragments import Fragment, views


@given(st.data(), st.integers(1, 4))
@settings(max_examples=100)
def test_a_block_in_a_partition_is_the_same_elements_as_in_the_weight(data, axes):
    """Two weights, cut anywhere; the second has one network more than the first, or none."""
    fragments, masks, boxes, offset = [], [], {}, 0
    for name in ("a", "b"):
        shape = data.draw(st.tuples(*[st.integers(1, 4)] * axes))
        sizes = data.draw(st.lists(st.tuples(*[st.integers(1, length) for length in shape]), max_size=3))
        boxes[name] = union(torch.Size(size) for size in sizes)
        mask = np.zeros(shape, dtype=bool)
        for size in sizes:
            mask[tuple(slice(length) for length in size)] = True
        first = data.draw(st.integers(0, math.prod(shape) - 1))
        length = data.draw(st.integers(1, math.prod(shape) - first))
        fragments.append(Fragment(name, shape, first, length, offset))
        masks.append(mask.reshape(-1)[first : first + length])
        offset += length
    counts = torch.zeros(offset)
    most = data.draw(st.sampled_from([None, 1, 3]))
    for view in views(fragments, boxes, at_most=most):
        counts.as_strided(view.size, view.stride, view.offset).add_(1)
    assert np.array_equal(counts.numpy(), np.concatenate(masks).astype(float))
    assert [view.size for view in views(fragments, None)] == [(offset,)]  # all of everything is one run
