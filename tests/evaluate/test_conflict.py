"""Gradients of two sub-networks: against autograd on extracted copies, mapped back one entry at a time."""

import numpy as np
import pytest
import torch
from grids import sliced
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import scrambled, spaces_with_members

from llmnas.evaluate.conflict import Conflict, conflict, neighbour_conflicts, network_gradient
from llmnas.space import SearchSpace
from llmnas.supernet import Transformer, extract

SEEDS = st.integers(0, 1000)
SPACE = SearchSpace.from_dict({
    "base": {"vocab_size": 32}, "layers": 3, "hidden_size": [8, 16], "depth": [1, 2, 3], "kv_heads": [1, 2],
    "queries_per_group": 1, "head_dim": 4, "ffn_size": {"choices": [4, 8], "per_layer": True},
})  # fmt: skip


def windows_of(space, count, seed=0):
    return np.random.default_rng(seed).integers(0, space.base.vocab_size, (count, 7))


def mapped_back(supernet, arch, windows):
    """Two tensors of the supernet's length: the gradient of the extracted copy where it has one, and where it is used.

    Every entry of the copy is found in the supernet by its value: all of the supernet's are made different.
    """
    places = {}
    offset = 0
    for parameter in supernet.parameters():
        values = parameter.detach().flatten().tolist()
        places |= {value: offset + i for i, value in enumerate(values)}
        offset += len(values)
    assert len(places) == offset
    small = extract(supernet, arch)
    tokens = torch.from_numpy(windows)
    small(tokens[:, :-1], targets=tokens[:, 1:]).loss.backward()
    gradient, used = torch.zeros(offset, dtype=torch.float64), torch.zeros(offset, dtype=torch.bool)
    for parameter in small.parameters():
        index = [places[value] for value in parameter.detach().flatten().tolist()]
        used[index] = True
        if parameter.grad is not None:
            gradient[index] = parameter.grad.flatten().double()
    return gradient, used


def different(supernet):
    """The same supernet with no two equal weights."""
    generator = torch.Generator().manual_seed(0)
    seen = torch.tensor([])
    with torch.no_grad():
        for parameter in supernet.parameters():
            for _ in range(100):
                repeated = torch.isin(parameter, seen) | (_counts(parameter) > 1)
                if not repeated.any():
                    break
                noise = torch.rand(parameter.shape, generator=generator)
                parameter[repeated] += 1e-3 * noise[repeated]
            seen = torch.cat([seen, parameter.flatten()])
    return supernet


def _counts(tensor):
    _, inverse, counts = tensor.unique(return_inverse=True, return_counts=True)
    return counts[inverse]


def expected(supernet, first, second, windows):
    (a, used_a), (b, used_b) = (mapped_back(supernet, arch, windows) for arch in (first, second))
    both = used_a & used_b
    a, b = a[both], b[both]
    moved = (a != 0) & (b != 0)
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=0).item()
    return Conflict(cosine, ((a > 0) != (b > 0))[moved].double().mean().item(), int(both.sum()))


@given(spaces_with_members(members=2) | spaces_with_members(members=2, kinds=True), SEEDS)
@settings(max_examples=40)
def test_equals_extracted_copies_mapped_back(case, seed):
    space, first, second = case
    supernet, windows = different(scrambled(space, seed)), windows_of(space, 3, seed)
    a, b = (network_gradient(supernet, arch, windows, batch=2) for arch in (first, second))
    found, wanted = conflict(a, b), expected(supernet, first, second, windows)
    assert found.shared == wanted.shared
    assert found.cosine == pytest.approx(wanted.cosine, abs=1e-3)
    assert found.opposed == pytest.approx(wanted.opposed, abs=0.02)  # rounding turns signs of what is nearly zero


def test_a_step_for_one_network_is_a_step_against_the_one_it_conflicts_with():
    """What the definition is for: the change of the other's loss has the sign of minus the product of the gradients."""
    supernet = Transformer(SPACE, seed=0).double()
    arch, windows, others = SPACE.largest(), windows_of(SPACE, 8), windows_of(SPACE, 8, seed=1)

    def loss(text):
        tokens = torch.from_numpy(text)
        return supernet(tokens[:, :-1], arch, targets=tokens[:, 1:]).loss.item()

    gradient = network_gradient(supernet, arch, windows)
    away = {name: -value for name, value in gradient.items()}
    assert conflict(gradient, away) == (pytest.approx(-1), 1, sum(value.numel() for value in gradient.values()))
    other = network_gradient(supernet, arch, others)
    before, stood = loss(others), conflict(gradient, other)
    with torch.no_grad():
        for name, value in gradient.items():
            sliced(supernet)[name][tuple(map(slice, value.shape))] -= 1e-4 * value
    squared = sum(value.square().sum() for value in gradient.values())
    others_squared = sum(value.square().sum() for value in other.values())
    slope = stood.cosine * (squared * others_squared).sqrt().item()
    assert before - loss(others) == pytest.approx(1e-4 * slope, rel=1e-2)


def test_batches_do_not_matter_and_the_model_is_left_alone():
    supernet, windows = Transformer(SPACE, seed=0), windows_of(SPACE, 10)
    arch = SPACE.smallest()
    whole, pieces = (network_gradient(supernet, arch, windows, batch=size) for size in (10, 3))
    for name in whole:
        torch.testing.assert_close(whole[name], pieces[name])
    assert all(parameter.grad is None for parameter in supernet.parameters())
    assert conflict(whole, whole) == (pytest.approx(1), 0, sum(value.numel() for value in whole.values()))


def test_neighbours_are_each_network_and_the_next():
    supernet, windows = Transformer(SPACE, seed=0), windows_of(SPACE, 4)
    archs = [SPACE.sample(np.random.default_rng(seed)) for seed in range(4)]
    gradients = [network_gradient(supernet, arch, windows) for arch in archs]
    found = neighbour_conflicts(supernet, archs, windows)
    assert found == [conflict(gradients[i], gradients[(i + 1) % 4]) for i in range(4)]
    assert neighbour_conflicts(supernet, archs[:2], windows) == found[:1]
    assert neighbour_conflicts(supernet, archs[:1], windows) == []


def test_parts_can_be_compared_alone_and_nothing_in_common_is_refused():
    supernet, windows = Transformer(SPACE, seed=0), windows_of(SPACE, 4)
    gradient = network_gradient(supernet, SPACE.largest(), windows)
    first, last = ({k: v for k, v in gradient.items() if k.startswith(f"layers.{i}.")} for i in (0, 2))
    assert conflict(first, gradient).shared == sum(value.numel() for value in first.values())
    with pytest.raises(ValueError, match="share no weight"):
        conflict(first, last)
