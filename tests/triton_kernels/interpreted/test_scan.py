"""The recurrence against a loop, its gradients against autograd and finite differences."""

import pytest
import torch

from llmnas.triton_kernels import reference
from llmnas.triton_kernels.mlgru_scan import mlgru_scan


def inputs(batch, time, width, dtype=torch.float32):
    forget, kept = torch.rand(batch, time, width, dtype=dtype), torch.randn(batch, time, width, dtype=dtype)
    return forget, kept, torch.randn(batch, width, dtype=dtype), torch.rand(batch, time) < 0.15


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("with_starts", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 7, 3), (1, 9, 17), (1, 63, 33), (0, 4, 4), (2, 0, 3)])
def test_forward_and_backward(shape, with_state, with_starts, inside):
    forget, kept, state, starts = inputs(*shape)
    forget, kept, state = (inside(value).requires_grad_() for value in (forget, kept, state))
    optional = (state if with_state else None, starts if with_starts else None)
    h = mlgru_scan(forget, kept, *optional)
    assert h.shape == shape
    if not h.numel():
        h.sum().backward()
        return
    want = reference.mlgru_scan(forget, kept, *optional)
    torch.testing.assert_close(h, want)
    leaves, grad = (forget, kept, *([state] if with_state else [])), torch.randn(shape)
    for have, expect in zip(torch.autograd.grad(h, leaves, grad), torch.autograd.grad(want, leaves, grad), strict=True):
        torch.testing.assert_close(have, expect, rtol=1e-4, atol=1e-5)


def test_gradcheck_in_double_precision():
    forget, kept, state, _ = inputs(1, 35, 2, torch.float64)
    starts = torch.zeros(1, 35, dtype=torch.bool)
    starts[0, [10, 32]] = True
    leaves = [value.requires_grad_() for value in (forget, kept, state)]
    assert torch.autograd.gradcheck(lambda *x: mlgru_scan(*x, starts), leaves, fast_mode=True)


def test_views_with_gaps(inside):
    forget, kept, state, starts = inputs(2, 9, 5)
    wide_f, wide_u = inside(torch.cat([forget, forget], 2)), inside(torch.cat([kept, kept], 1))
    h = mlgru_scan(wide_f[:, :, :5], wide_u[:, :9], state, starts)
    torch.testing.assert_close(h, reference.mlgru_scan(forget, kept, state, starts))


def test_a_start_hides_everything_before_it():
    forget, kept, state, _ = inputs(1, 40, 4)
    starts = torch.zeros(1, 40, dtype=torch.bool)
    starts[0, 33] = True
    changed = kept.clone()
    changed[:, :33] += 1
    assert torch.equal(
        mlgru_scan(forget, kept, state, starts)[:, 33:], mlgru_scan(forget, changed, 2 * state, starts)[:, 33:]
    )


@pytest.mark.parametrize("shape", [(1, 500, 1), (1, 727, 2)])
def test_long_sequences(shape, inside):
    test_forward_and_backward(shape, True, True, inside)


@pytest.mark.full
@pytest.mark.parametrize("shape", [(2, 500, 40), (1, 727, 33)])
def test_long_sequences_of_many_channels(shape, inside):
    test_forward_and_backward(shape, True, True, inside)
