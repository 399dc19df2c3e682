"""The blocked loss against torch's own, in float64 where it must be exact."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st

from llmnas.nn.cross_entropy import ROWS, linear_cross_entropy, token_losses


def problem(tokens, hidden, vocab, seed, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(tokens, hidden, dtype=dtype, generator=generator)
    stored = scale * torch.randn(vocab, hidden + 3, dtype=dtype, generator=generator)
    targets = torch.randint(vocab, (tokens,), generator=generator)
    return h.requires_grad_(), stored.requires_grad_(), targets


def gradients(loss, h, stored, targets, factor=1.0):
    value = loss(h, stored[:, : h.shape[1]], targets)
    return value, *torch.autograd.grad(factor * value, (h, stored))


@given(st.integers(1, 2 * ROWS + 5), st.integers(1, 9), st.integers(2, 40), st.integers(0, 99), st.floats(0.1, 30))
def test_loss_and_gradients_are_torchs(tokens, hidden, vocab, seed, scale):
    given_problem = problem(tokens, hidden, vocab, seed, scale)
    found = gradients(linear_cross_entropy, *given_problem, factor=1.7)
    expected = gradients(lambda h, w, t: F.cross_entropy(h @ w.t(), t), *given_problem, factor=1.7)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_a_target_that_is_all_but_impossible_has_a_finite_loss():
    h = torch.ones(1, 1, requires_grad=True)
    head = torch.tensor([[200.0], [-200.0]])
    loss = linear_cross_entropy(h, head, torch.tensor([1]))
    assert loss.item() == pytest.approx(400.0)
    assert torch.autograd.grad(loss, h)[0].item() == pytest.approx(400.0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_other_precisions(dtype, tolerance):
    h, stored, targets = problem(ROWS + 1, 8, 30, 0)
    expected = gradients(linear_cross_entropy, h, stored, targets)
    rounded = [x.detach().to(dtype).requires_grad_() for x in (h, stored)]
    found = gradients(linear_cross_entropy, *rounded, targets)
    assert found[0].dtype == torch.float32
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=tolerance, atol=tolerance)


def test_only_one_side_may_need_a_gradient():
    h, stored, targets = problem(5, 4, 7, 0)
    head = stored[:, :4]
    for inputs in ((h.detach(), head), (h, head.detach())):
        loss = linear_cross_entropy(*inputs, targets)
        expected = F.cross_entropy(inputs[0] @ inputs[1].t(), targets)
        leaf = h if inputs[0].requires_grad else stored
        found = [torch.autograd.grad(value, leaf)[0] for value in (loss, expected)]
        torch.testing.assert_close(*found)


def test_gradients_can_be_differentiated_again():
    h, stored, targets = problem(6, 4, 9, 0)
    torch.autograd.gradgradcheck(lambda a, b: linear_cross_entropy(a, b[:, :4], targets), (h, stored))


def test_token_losses_build_no_graph():
    h, stored, targets = problem(ROWS + 3, 4, 11, 0)
    losses = token_losses(h, stored[:, :4], targets)
    assert not losses.requires_grad
    torch.testing.assert_close(losses, F.cross_entropy(h @ stored[:, :4].t(), targets, reduction="none").detach())
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(h, stored[:, :4], targets), losses.mean())
