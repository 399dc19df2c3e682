"""Sliced linears equal linears with a copied block; gradients land in the block and nowhere else."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st

from llmnas.nn import linear as module
from llmnas.nn.linear import linear, linear_from_heads, linear_heads

SIZES = st.integers(1, 5)


def double(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


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
        padded = torch.zeros_like(whole)
        padded[tuple(slice(size) for size in block.shape)] = block.grad
        torch.testing.assert_close(whole.grad, padded, rtol=1e-12, atol=1e-12)
        outside = torch.ones_like(whole, dtype=torch.bool)
        outside[tuple(slice(size) for size in block.shape)] = False
        assert (whole.grad[outside] == 0).all()


@given(SIZES, SIZES, st.integers(0, 3), st.integers(0, 3), st.booleans())
def test_linear(inputs, outputs, spare_in, spare_out, biased):
    weight = double(outputs + spare_out, inputs + spare_in)
    bias = double(outputs + spare_out, seed=1) if biased else None
    x = double(2, 3, inputs, seed=2)
    w, y = leading(weight, (outputs, inputs)), leading(x, x.shape)
    b = None if bias is None else leading(bias, (outputs,))
    expected = y @ w.T if b is None else y @ w.T + b
    pairs = [(weight, w), (x, y)] + ([] if bias is None else [(bias, b)])
    check_gradients(linear(x, weight, outputs, bias), expected, pairs)


@given(st.lists(st.tuples(SIZES, st.integers(0, 2)), min_size=2, max_size=3), SIZES, st.integers(0, 2), st.booleans())
def test_linear_heads(grid, inputs, spare, biased):
    sizes, largest = tuple(size for size, _ in grid), tuple(size + more for size, more in grid)
    weight = double(*largest, inputs + spare)
    bias = double(*largest, seed=1) if biased else None
    x = double(2, inputs, seed=2)
    w, y = leading(weight, (*sizes, inputs)), leading(x, x.shape)
    b = None if bias is None else leading(bias, sizes)
    expected = torch.tensordot(y, w, dims=([-1], [-1]))  # [2, *sizes]: no flattening of heads
    expected = (expected if b is None else expected + b).reshape(2, -1)
    pairs = [(weight, w), (x, y)] + ([] if bias is None else [(bias, b)])
    check_gradients(linear_heads(x, weight, sizes, bias), expected, pairs)


@given(st.lists(st.tuples(SIZES, st.integers(0, 2)), min_size=2, max_size=3), SIZES, st.integers(0, 2))
def test_linear_from_heads(grid, outputs, spare):
    sizes, largest = tuple(size for size, _ in grid), tuple(size + more for size, more in grid)
    weight = double(outputs + spare, *largest)
    heads = double(2, *sizes, seed=2)
    w, y = leading(weight, (outputs, *sizes)), leading(heads, heads.shape)
    axes = list(range(1, len(sizes) + 1))
    expected = torch.tensordot(y, w, dims=(axes, axes))
    x = heads.flatten(1)
    check_gradients(linear_from_heads(x, weight, sizes, outputs), expected, [(weight, w), (heads, y)])


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
    weight = torch.randn(6, 8)
    for inputs, outputs in ((8, 6), (5, 6), (8, 2), (5, 2)):
        linear(torch.randn(3, inputs), weight, outputs)
        assert is_view(operands[-1], weight)


def test_heads_are_copied_only_where_an_inner_axis_is_sliced(operands):
    weight = torch.randn(3, 2, 4, 8)
    for sizes, inputs, view in (
        ((3, 2, 4), 8, True),
        ((3, 2, 4), 5, True),
        ((2, 2, 4), 8, True),
        ((2, 2, 4), 5, True),
        ((3, 1, 4), 8, False),
        ((3, 2, 2), 8, False),
    ):
        linear_heads(torch.randn(7, inputs), weight, sizes)
        assert is_view(operands[-1], weight) == view, (sizes, inputs)


def test_the_way_back_is_copied_only_where_an_inner_axis_is_sliced(operands):
    weight = torch.randn(8, 3, 2, 4)
    for sizes, outputs, view in (
        ((3, 2, 4), 8, True),
        ((3, 2, 4), 5, True),
        ((2, 2, 4), 8, True),
        ((2, 2, 4), 5, True),
        ((3, 1, 4), 8, False),
        ((3, 2, 2), 5, False),
    ):
        linear_from_heads(torch.randn(7, sizes[0] * sizes[1] * sizes[2]), weight, sizes, outputs)
        assert is_view(operands[-1], weight) == view, (sizes, outputs)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6))
def test_a_float_weight_gives_float_accuracy(inputs, outputs, rows):
    weight, x = torch.randn(6, 6), torch.randn(rows, inputs)
    expected = x.double() @ weight[:outputs, :inputs].double().T
    torch.testing.assert_close(linear(x, weight, outputs).double(), expected, rtol=1e-5, atol=1e-5)
