"""Which part of every weight networks use: the shapes of their copies, united without overlap."""

import itertools

import numpy as np
import torch
from grids import sliced
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import random_tokens, scrambled, spaces_with_members
from test_extract import namesake

from llmnas.supernet import Transformer, active_boxes, extract, hull, union, used_blocks


def marked(boxes, shape):
    """How many boxes cover each element."""
    found = np.zeros(shape, dtype=int)
    for box in boxes:
        found[tuple(slice(*edges) for edges in box)] += 1
    return found


@given(spaces_with_members(kinds=True))
@settings(max_examples=60)
def test_a_network_uses_what_its_copy_holds(case):
    space, arch = case
    supernet = Transformer(space)
    blocks, whole = used_blocks(supernet, arch), sliced(supernet)
    copies = {namesake(name, arch): p for name, p in extract(supernet, arch).named_parameters()}
    assert blocks.keys() == copies.keys()
    for name, copy in copies.items():
        held = whole[name][tuple(slice(size) for size in blocks[name])]
        assert torch.equal(held.reshape(copy.shape), copy)
        assert held.numel() == copy.numel()


@given(spaces_with_members(), st.integers(0, 100))
@settings(max_examples=30)
def test_what_is_not_used_has_no_gradient(case, seed):
    space, arch = case
    supernet, tokens = scrambled(space, seed), random_tokens(space.base, 2, 6, seed)
    supernet(tokens, arch, targets=tokens).loss.backward()
    boxes, shapes = active_boxes(supernet, [arch]), sliced(supernet)
    for name, parameter in supernet.named_parameters():
        unused = torch.from_numpy(marked(boxes.get(name, ()), shapes[name].shape) == 0)
        assert parameter.grad is None or not parameter.grad[unused.view(parameter.shape)].any()


@given(st.data(), st.integers(1, 4))
@settings(max_examples=100)
def test_a_union_covers_every_element_once(data, axes):
    sizes = data.draw(st.lists(st.tuples(*[st.integers(1, 4)] * axes), min_size=1, max_size=4))
    boxes = union(torch.Size(size) for size in sizes)
    expected = np.zeros((4,) * axes, dtype=int)
    for size in sizes:
        expected[tuple(slice(length) for length in size)] = 1
    assert np.array_equal(marked(boxes, expected.shape), expected)
    assert hull(boxes) == tuple((0, max(lengths)) for lengths in zip(*sizes, strict=True))


@given(spaces_with_members(kinds=True), st.integers(0, 100))
@settings(max_examples=30)
def test_several_networks_use_what_one_of_them_does(case, seed):
    space, arch = case
    networks = [arch, *(space.sample(np.random.default_rng(seed + i)) for i in range(2))]
    supernet = Transformer(space)
    boxes, each = active_boxes(supernet, networks), [used_blocks(supernet, network) for network in networks]
    assert boxes.keys() == set(itertools.chain(*each))
    for name, parameter in sliced(supernet).items():
        expected = np.zeros(parameter.shape, dtype=int)
        for blocks in each:
            if name in blocks:
                expected[tuple(slice(length) for length in blocks[name])] = 1
        assert np.array_equal(marked(boxes.get(name, ()), parameter.shape), expected)
