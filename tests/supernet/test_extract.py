"""A sub-network equals its stand-alone copy: values, gradients, and the copy is its own."""

from dataclasses import replace

import pytest
import torch
from grids import sliced
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import random_tokens, scrambled, spaces_with_members

from llmnas.cost import count_params
from llmnas.space import Architecture, SearchSpace
from llmnas.supernet import Transformer, extract, stand_alone_shape

SEEDS = st.integers(0, 1000)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def namesake(name, arch):
    """The supernet's name of a parameter of the extracted network."""
    parts = name.split(".")
    if parts[0] == "layers":
        parts[1] = str([i for i, layer in enumerate(arch.layers) if layer is not None][int(parts[1])])
    return ".".join(parts)


@given(spaces_with_members() | spaces_with_members(kinds=True), SEEDS)
@settings(max_examples=250)
def test_a_sub_network_equals_its_copy(case, seed):
    space, arch = case
    supernet, tokens = scrambled(space, seed), random_tokens(space.base, 2, 6, seed)
    small = extract(supernet, arch)
    inside, alone = supernet(tokens, arch), small(tokens)
    torch.testing.assert_close(inside, alone, **CLOSE)
    assert inside.abs().max() > 0.1
    assert sum(p.numel() for p in small.parameters()) == count_params(arch, space.base).total
    assert small.envelope == arch.compact()


@given(spaces_with_members(), SEEDS)
@settings(max_examples=60)
def test_gradients_are_those_of_the_copy_and_zero_elsewhere(case, seed):
    space, arch = case
    supernet, tokens = scrambled(space, seed), random_tokens(space.base, 2, 6, seed)
    targets = random_tokens(space.base, 2, 6, seed + 1)
    small = extract(supernet, arch)
    loss, expected = supernet(tokens, arch, targets=targets).loss, small(tokens, targets=targets).loss
    torch.testing.assert_close(loss, expected, **CLOSE)
    loss.backward()
    expected.backward()
    whole, used, shapes, own = dict(supernet.named_parameters()), set(), sliced(supernet), sliced(small)
    for name, parameter in small.named_parameters():
        size = own[name].shape
        padded = torch.zeros_like(shapes[namesake(name, arch)])
        padded[tuple(slice(length) for length in size)] = parameter.grad.view(size)
        used.add(namesake(name, arch))
        found = whole[namesake(name, arch)].grad.view(padded.shape)
        torch.testing.assert_close(found, padded, **CLOSE)
        inactive = torch.ones_like(found, dtype=torch.bool)
        inactive[tuple(slice(length) for length in size)] = False
        assert (found[inactive] == 0).all()
    skipped = {name for name in whole if name not in used}
    assert all(whole[name].grad is None for name in skipped)
    assert {int(name.split(".")[1]) for name in skipped} == {i for i, s in enumerate(arch.layers) if s is None}


@given(spaces_with_members(members=2), SEEDS)
@settings(max_examples=20)
def test_the_copy_is_its_own(case, seed):
    space, arch, _ = case
    supernet, tokens = scrambled(space, seed), random_tokens(space.base, 1, 4, seed)
    before = supernet(tokens, arch).detach()
    small = extract(supernet, arch)
    for name, parameter in small.named_parameters():
        source = dict(supernet.named_parameters())[namesake(name, arch)]
        assert parameter.is_contiguous()
        assert parameter.requires_grad
        assert parameter.untyped_storage().data_ptr() != source.untyped_storage().data_ptr()
        assert parameter.untyped_storage().nbytes() == parameter.nbytes
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(1)
    assert torch.equal(supernet(tokens, arch), before)


@given(spaces_with_members(), SEEDS)
@settings(max_examples=20)
def test_extraction_of_an_extracted_network_changes_nothing(case, seed):
    """Also through a smaller head_dim: the frequencies are still those of the first supernet."""
    space, arch = case
    supernet, tokens = scrambled(space, seed), random_tokens(space.base, 1, 6, seed)
    once = extract(supernet, arch)
    twice = extract(once, arch.compact())
    assert torch.equal(once(tokens), twice(tokens))
    assert once.rope_dim == twice.rope_dim == supernet.rope_dim


@given(spaces_with_members(), SEEDS)
@settings(max_examples=20)
def test_weights_load_into_a_model_built_from_the_shape_alone(case, seed):
    """What a checkpoint does: shape and weights are enough, whatever the new model was initialised with."""
    space, arch = case
    supernet, tokens = scrambled(space, seed), random_tokens(space.base, 1, 6, seed)
    small = extract(supernet, arch)
    rebuilt = Transformer(stand_alone_shape(space.base, supernet.rope_dim, arch), seed=99)
    rebuilt.load_state_dict(small.state_dict())
    assert torch.equal(rebuilt(tokens), small(tokens))


@given(spaces_with_members(), SEEDS)
@settings(max_examples=15)
def test_mode_and_dtype_follow_and_no_generator_is_touched(case, seed):
    space, arch = case
    supernet = scrambled(space, seed).bfloat16().eval()
    state = torch.random.get_rng_state()
    small = extract(supernet, arch)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not small.training
    assert not any(module.training for module in small.modules())
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert extract(supernet.train(), arch).training


def test_what_the_weights_do_not_hold_is_refused():
    space = SearchSpace.from_dict({
        "base": {"vocab_size": 8}, "layers": 1, "hidden_size": 8, "depth": 1, "kv_heads": 1, "queries_per_group": 1,
        "head_dim": 4, "ffn_size": 8, "experts": [1, 4],
    })  # fmt: skip
    (layer,) = space.largest().layers
    with pytest.raises(ValueError, match="layer 0: experts = 8 is more than 4"):
        extract(Transformer(space), Architecture(8, (replace(layer, experts=8),)))
