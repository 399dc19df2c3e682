"""Codes, scales and straight-through gradients against the equations; slices of codes against codes of slices."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llmnas.nn.ternary import add_scales, codes, magnitude, read_input, reader, scale_name, scale_of
from llmnas.space import LayerKinds

BOTH = LayerKinds(("binary", "ternary", "dense"))
SEEDS = st.integers(0, 1000)


class Holder(nn.Module):
    def __init__(self, shape, out_dims, matrices=0, seed=0):
        super().__init__()
        self.w = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
        add_scales(self, BOTH, {"w": out_dims}, matrices)


@given(SEEDS)
def test_ternary_is_the_equation_of_the_paper(seed):
    module = Holder((6, 10), 1, seed=seed)
    w = module.w.detach()
    gamma = w.abs().mean()
    expected = (w / gamma).round().clamp(-1, 1) * gamma
    torch.testing.assert_close(reader(module, "w", "ternary", 1)(module.w), expected)


@given(SEEDS)
def test_binary_is_the_equation_of_the_paper(seed):
    module = Holder((6, 10), 1, seed=seed)
    w = module.w.detach()
    expected = torch.where(w >= 0, 1.0, -1.0) * w.abs().mean(1, keepdim=True)
    torch.testing.assert_close(reader(module, "w", "binary", 1)(module.w), expected)


@given(SEEDS, st.sampled_from(["ternary", "binary"]), st.integers(1, 3), st.integers(1, 4), st.integers(1, 5))
def test_codes_of_a_slice_are_the_slice_of_the_codes(seed, kind, a, b, c):
    module = Holder((3, 4, 5), 2, seed=seed)
    index = (slice(a), slice(b), slice(c))
    scale = scale_of(module, "w", kind, 2)
    whole = codes(module.w, scale, kind)
    block = module.w[index]
    part = codes(block, scale[tuple(slice(size) for size in block.shape)], kind)
    assert torch.equal(part, whole[index])
    torch.testing.assert_close(reader(module, "w", kind, 2)(block), reader(module, "w", kind, 2)(module.w)[index])


def test_a_scale_of_the_block_would_change_codes():
    """The mistake that the full matrix's scale avoids: a few per cent of the codes differ."""
    module = Holder((256, 256), 1)
    with torch.no_grad():
        module.w[:, 128:] *= 1.3
    full, block = magnitude(module.w, "ternary", 1), magnitude(module.w[:, :128], "ternary", 1)
    differ = (codes(module.w[:, :128], full, "ternary") != codes(module.w[:, :128], block, "ternary")).float().mean()
    assert differ > 0.02


def test_every_expert_has_a_scale_of_its_own():
    module = Holder((3, 4, 5), 2, matrices=1)
    scale = scale_of(module, "w", "ternary", 2, 1)
    assert scale.shape == (3, 1, 1)
    torch.testing.assert_close(scale.flatten(), module.w.detach().abs().mean((1, 2)))


def test_a_stored_scale_is_used_as_it_is():
    module = Holder((4, 6), 1)
    getattr(module, scale_name("w", "ternary")).fill_(0.75)
    values = reader(module, "w", "ternary", 1)(module.w).detach().unique()
    torch.testing.assert_close(values, torch.tensor([-0.75, 0.0, 0.75]))


@pytest.mark.parametrize("kind", ["ternary", "binary"])
def test_gradients_go_straight_through(kind):
    module = Holder((4, 6), 1)
    weight = torch.randn(4, 6)
    (reader(module, "w", kind, 1)(module.w) * weight).sum().backward()
    torch.testing.assert_close(module.w.grad, weight)
    x = torch.randn(3, 6, requires_grad=True)
    (read_input(x, kind) * weight[:3]).sum().backward()
    torch.testing.assert_close(x.grad, weight[:3])


def test_activations_are_int8_a_token():
    x = torch.randn(5, 16) * torch.tensor([1e-4, 1, 10, 100, 0])[:, None]
    seen = read_input(x, "ternary")
    scale = 127 / x.abs().amax(1, keepdim=True).clamp_min(1e-5)
    steps = seen * scale
    torch.testing.assert_close(steps, steps.round(), atol=2e-4, rtol=0)
    assert ((seen - x).abs() <= 0.5 / scale + 1e-7).all()


def test_binary_activations_are_a_sign_and_a_scale_unless_they_have_no_sign():
    x = torch.randn(5, 16)
    assert torch.equal(read_input(x, "binary").sign(), torch.where(x >= 0, 1.0, -1.0))
    torch.testing.assert_close(read_input(x, "binary").abs(), x.abs().mean(1, keepdim=True).expand_as(x))
    assert torch.equal(read_input(x, "binary", signed=False), read_input(x, "ternary"))
    assert read_input(x, "dense") is x
