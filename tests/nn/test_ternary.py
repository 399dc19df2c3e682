"""Codes, scales and straight-through gradients against the equations; slices of codes against codes of slices."""

import pytest
import torch
from grids import grid
from hypothesis import given
from hypothesis import strategies as st

from llmnas.nn.elastic_linear import ElasticLinear
from llmnas.nn.expert_linear import ExpertLinear
from llmnas.nn.ternary import codes, magnitude, read_input, scale_name

BOTH = ("binary", "ternary", "dense")
SEEDS = st.integers(0, 1000)


def random(linear, seed=0):
    with torch.no_grad():
        linear.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return linear


def matrix(rows, columns, seed=0):
    return random(ElasticLinear(columns, rows, kinds=BOTH), seed)


def read(linear, kind):
    """The weight that plain tokens meet: what the layer makes of unit vectors."""
    unit = torch.eye(linear.in_features)
    return linear(unit, linear.rows, kind).T


@given(SEEDS)
def test_ternary_is_the_equation_of_the_paper(seed):
    linear = matrix(6, 10, seed)
    w = linear.weight.detach()
    gamma = w.abs().mean()
    expected = (w / gamma).round().clamp(-1, 1) * gamma
    torch.testing.assert_close(read(linear, "ternary"), expected)


@given(SEEDS)
def test_binary_is_the_equation_of_the_paper(seed):
    linear = matrix(6, 10, seed)
    w = linear.weight.detach()
    expected = torch.where(w >= 0, 1.0, -1.0) * w.abs().mean(1, keepdim=True)
    torch.testing.assert_close(read(linear, "binary"), expected)


@given(SEEDS, st.sampled_from(["ternary", "binary"]), st.integers(1, 3), st.integers(1, 4), st.integers(1, 5))
def test_codes_of_a_slice_are_the_slice_of_the_codes(seed, kind, a, b, c):
    linear = matrix((3, 4), 5, seed)
    index = (slice(a), slice(b), slice(c))
    whole = codes(linear.weight, linear.scale(kind), kind).view(3, 4, 5)
    part = codes(grid(linear)[index].flatten(0, 1), linear.scale(kind, (a, b)), kind)
    assert torch.equal(part, whole[index].flatten(0, 1))
    found = linear(torch.eye(5)[:c, :c], (a, b), kind).T
    torch.testing.assert_close(found, read(linear, kind).view(3, 4, 5)[index].flatten(0, 1))


def test_a_scale_of_the_block_would_change_codes():
    """The mistake that the full matrix's scale avoids: a few per cent of the codes differ."""
    weight = matrix(256, 256).weight.detach()
    weight[:, 128:] *= 1.3
    full, block = magnitude(weight, "ternary"), magnitude(weight[:, :128], "ternary")
    differ = (codes(weight[:, :128], full, "ternary") != codes(weight[:, :128], block, "ternary")).float().mean()
    assert differ > 0.02


def test_every_expert_has_a_scale_of_its_own():
    experts = random(ExpertLinear(3, 5, 4, kinds=BOTH))
    scale = experts.scale("ternary")
    assert scale.shape == (3, 1, 1)
    torch.testing.assert_close(scale.flatten(), experts.weight.detach().abs().mean((1, 2)))
    assert experts.scale("binary").shape == (3, 4, 1)


def test_a_stored_scale_is_used_as_it_is():
    linear = matrix(4, 6)
    linear.get_buffer(scale_name("ternary")).fill_(0.75)
    values = read(linear, "ternary").detach().unique()
    torch.testing.assert_close(values, torch.tensor([-0.75, 0.0, 0.75]))


@pytest.mark.parametrize("kind", ["ternary", "binary"])
def test_gradients_go_straight_through(kind):
    linear, weight = matrix(4, 6), torch.randn(4, 6)
    (read(linear, kind) * weight).sum().backward()
    torch.testing.assert_close(linear.weight.grad, weight)
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
