"""Sliced linears equal linears with a copied block; gradients land in the block and nowhere else."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st

from llmnas.nn import elastic_linear as module
from llmnas.nn.elastic_linear import ElasticEmbedding, ElasticLinear

SIZES = st.integers(1, 5)


def double(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def layer(rows, columns, bias=False):
    """With weights of any size, in the shape in which they are sliced."""
    found = ElasticLinear(columns, rows, bias=bias).double()
    with torch.no_grad():
        for i, parameter in enumerate(found.parameters()):
            parameter.copy_(double(*parameter.shape, seed=i))
    return found


def leading(tensor, sizes):
    """The leading block as a parameter of its own, filled element by element."""
    block = tensor.detach()
    for axis, size in enumerate(sizes):
        block = block.index_select(axis, torch.arange(size))
    return block.clone().requires_grad_()


def check_gradients(output, expected, pairs):
    """Same output, same gradient in the block, zero outside."""
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(expected)
    output.backward(direction)
    expected.backward(direction)
    for whole, block in pairs:
        parameter, shape = whole if isinstance(whole, tuple) else (whole, whole.shape)
        found, padded = parameter.grad.view(shape), torch.zeros(shape, dtype=torch.float64)
        padded[tuple(slice(size) for size in block.shape)] = block.grad
        torch.testing.assert_close(found, padded, rtol=1e-12, atol=1e-12)
        outside = torch.ones(shape, dtype=torch.bool)
        outside[tuple(slice(size) for size in block.shape)] = False
        assert (found[outside] == 0).all()


@given(SIZES, SIZES, st.integers(0, 3), st.integers(0, 3), st.booleans())
def test_a_matrix(inputs, outputs, spare_in, spare_out, biased):
    linear = layer(outputs + spare_out, inputs + spare_in, biased)
    weight, bias = linear.weight, linear.bias
    x = double(2, 3, inputs, seed=2)
    w, y = leading(weight, (outputs, inputs)), leading(x, x.shape)
    b = None if bias is None else leading(bias, (outputs,))
    expected = y @ w.T if b is None else y @ w.T + b
    pairs = [(weight, w), (x, y)] + ([] if bias is None else [(bias, b)])
    check_gradients(linear(x, outputs), expected, pairs)


@given(st.lists(st.tuples(SIZES, st.integers(0, 2)), min_size=2, max_size=3), SIZES, st.integers(0, 2), st.booleans())
def test_rows_that_are_a_grid(grid, inputs, spare, biased):
    sizes, largest = tuple(size for size, _ in grid), tuple(size + more for size, more in grid)
    linear = layer(largest, inputs + spare, biased)
    weight, bias = (linear.weight, (*largest, inputs + spare)), linear.bias
    x = double(2, inputs, seed=2)
    w, y = leading(weight[0].view(weight[1]), (*sizes, inputs)), leading(x, x.shape)
    b = None if bias is None else leading(bias.view(largest), sizes)
    expected = torch.tensordot(y, w, dims=([-1], [-1]))  # [2, *sizes]: no flattening of heads
    expected = (expected if b is None else expected + b).reshape(2, -1)
    pairs = [(weight, w), (x, y)] + ([] if bias is None else [((bias, largest), b)])
    check_gradients(linear(x, sizes), expected, pairs)


@given(st.lists(st.tuples(SIZES, st.integers(0, 2)), min_size=2, max_size=3), SIZES, st.integers(0, 2))
def test_columns_that_are_a_grid(grid, outputs, spare):
    sizes, largest = tuple(size for size, _ in grid), tuple(size + more for size, more in grid)
    linear = layer(outputs + spare, largest)
    weight = (linear.weight, (outputs + spare, *largest))
    heads = double(2, *sizes, seed=2)
    w, y = leading(weight[0].view(weight[1]), (outputs, *sizes)), leading(heads, heads.shape)
    axes = list(range(1, len(sizes) + 1))
    expected = torch.tensordot(y, w, dims=(axes, axes))
    x = heads.flatten(1)
    check_gradients(linear(x, outputs, columns=sizes), expected, [(weight, w), (heads, y)])


@pytest.fixture
def operands(monkeypatch):
    """The weights that reach `F.linear`."""
    seen = []
    real = F.linear

    def spy(x, weight, bias=None):
        seen.append(weight)
        return real(x, weight, bias)

    monkeypatch.setattr(module.F, "linear", spy)
    return seen


def is_view(block, weight):
    return block.data_ptr() == weight.data_ptr() and block.untyped_storage().data_ptr() == weight.data_ptr()


def test_a_sliced_matrix_is_never_copied(operands):
    linear = layer(6, 8).float()
    for inputs, outputs in ((8, 6), (5, 6), (8, 2), (5, 2)):
        linear(torch.randn(3, inputs), outputs)
        assert is_view(operands[-1], linear.weight)
    linear(torch.randn(3, 8), 6)
    assert operands[-1] is linear.weight


def test_heads_are_copied_only_where_an_inner_axis_is_sliced(operands):
    linear = layer((3, 2, 4), 8).float()
    for sizes, inputs, view in (
        ((3, 2, 4), 8, True),
        ((3, 2, 4), 5, True),
        ((2, 2, 4), 8, True),
        ((2, 2, 4), 5, True),
        ((3, 1, 4), 8, False),
        ((3, 2, 2), 8, False),
    ):
        linear(torch.randn(7, inputs), sizes)
        assert is_view(operands[-1], linear.weight) == view, (sizes, inputs)


def test_the_way_back_is_copied_only_where_an_inner_axis_is_sliced(operands):
    linear = layer(8, (3, 2, 4)).float()
    for sizes, outputs, view in (
        ((3, 2, 4), 8, True),
        ((3, 2, 4), 5, True),
        ((2, 2, 4), 8, True),
        ((2, 2, 4), 5, True),
        ((3, 1, 4), 8, False),
        ((3, 2, 2), 5, False),
    ):
        linear(torch.randn(7, sizes[0] * sizes[1] * sizes[2]), outputs, columns=sizes)
        assert is_view(operands[-1], linear.weight) == view, (sizes, outputs)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6))
def test_a_float_weight_gives_float_accuracy(inputs, outputs, rows):
    linear, x = layer(6, 6).float(), torch.randn(rows, inputs)
    expected = x.double() @ linear.weight[:outputs, :inputs].double().T
    torch.testing.assert_close(linear(x, outputs).double(), expected, rtol=1e-5, atol=1e-5)


def test_it_is_an_nn_linear_and_draws_nothing():
    """The global generator stays where it is: weights come from a seed of ours or from a file."""
    before = torch.get_rng_state()
    linear, embedding = ElasticLinear(8, (3, 2), bias=True), ElasticEmbedding(5, 8)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(linear, torch.nn.Linear)
    assert (linear.weight.shape, linear.in_features, linear.out_features) == ((6, 8), 8, 6)
    assert not linear.bias.any()
    with torch.no_grad():
        embedding.weight.normal_()
    tokens = torch.tensor([[3, 0]])
    assert torch.equal(embedding(tokens, 4), embedding.weight[tokens][..., :4])
    assert torch.equal(embedding(tokens), embedding.weight[tokens])
