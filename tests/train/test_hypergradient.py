"""First and second order against what they approximate, which automatic differentiation gives exactly."""

import pytest
import strategies
import torch
from torch.func import functional_call

from llmnas.space import SearchSpace
from llmnas.supernet.mixture import Mixture, first_alphas, soften
from llmnas.train.hypergradient import first_order, second_order

XI = 0.3


def small_problem():
    """Two layers, two alphas that act on the hidden units, in float64; losses on separate data."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    w1, w2 = draw(5, 3).requires_grad_(), draw(1, 5).requires_grad_()
    a, b = draw(5).requires_grad_(), draw(2).requires_grad_()
    data = {name: (draw(20, 3), draw(20, 1)) for name in ("train", "validation")}

    def loss(name, w1=w1, w2=w2):
        x, y = data[name]
        gates = b.softmax(0)
        hidden = gates[0] * (x @ w1.T).tanh() + gates[1] * (x @ w1.T)
        return ((hidden * a.sigmoid()) @ w2.T - y).square().mean()

    return loss, [w1, w2], [a, b]


def exact(loss, weights, alphas):
    """d L_val(w - xi grad_w L_train(w, a), a) / d a through a differentiable inner step."""
    inner = torch.autograd.grad(loss("train"), weights, create_graph=True)
    moved = [w - XI * g for w, g in zip(weights, inner, strict=True)]
    return torch.autograd.grad(loss("validation", *moved), alphas)


def test_second_order_is_the_exact_gradient_through_the_inner_step():
    loss, weights, alphas = small_problem()
    found = second_order(lambda: loss("train"), lambda: loss("validation"), weights, alphas, XI)
    expected = exact(loss, weights, alphas)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-4, atol=1e-6)
    # and the correction is not nothing: the first order at w' alone is far off
    moved = [w - XI * g for w, g in zip(weights, torch.autograd.grad(loss("train"), weights), strict=True)]
    alone = torch.autograd.grad(loss("validation", *moved), alphas)
    assert max(float((f - e).norm() / e.norm()) for f, e in zip(alone, expected, strict=True)) > 0.05


def test_its_finite_difference_is_the_hessian_vector_product():
    """The bracket over 2 eps equals (d2 L_train / da dw) v with v = grad_w' L_val, by double differentiation."""
    loss, weights, alphas = small_problem()
    found = second_order(lambda: loss("train"), lambda: loss("validation"), weights, alphas, XI)
    moved = [
        (w - XI * g).detach().requires_grad_()
        for w, g in zip(weights, torch.autograd.grad(loss("train"), weights), strict=True)
    ]
    gradients = torch.autograd.grad(loss("validation", *moved), [*moved, *alphas])
    v, direct = gradients[:2], gradients[2:]
    inner = torch.autograd.grad(loss("train"), weights, create_graph=True)
    along = sum((g * part).sum() for g, part in zip(inner, v, strict=True))
    product = torch.autograd.grad(along, alphas)
    for f, d, p in zip(found, direct, product, strict=True):
        torch.testing.assert_close((d - f) / XI, p, rtol=1e-4, atol=1e-6)


def test_first_order_is_the_gradient_at_the_present_weights():
    loss, _, alphas = small_problem()
    found = first_order(lambda: loss("validation"), alphas)
    for f, e in zip(found, torch.autograd.grad(loss("validation"), alphas), strict=True):
        assert torch.equal(f, e)


def test_weights_are_put_back_bit_for_bit_even_where_a_loss_raises():
    loss, weights, alphas = small_problem()
    before = [w.detach().clone() for w in weights]
    second_order(lambda: loss("train"), lambda: loss("validation"), weights, alphas, XI)
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))

    def fails():
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        second_order(lambda: loss("train"), fails, weights, alphas, XI)
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))
    assert all(w.grad is None for w in [*weights, *alphas])


def test_second_order_of_a_supernet():
    """On the real mixture (float32, attention twice differentiable); first order is far off."""
    space = SearchSpace.from_dict(
        {
            "base": {"vocab_size": 40, "max_seq": 32}, "layers": 2, "hidden_size": [8, 16],
            "depth": {"choices": [1, 2]}, "kv_heads": 2, "queries_per_group": 1, "head_dim": 4,
            "ffn_size": {"choices": [8, 24], "per_layer": True},
            "mixer": {"choices": ["none", "attention"], "per_layer": True},
        }
    )  # fmt: skip
    mixture = Mixture(strategies.scrambled(space))
    alphas = first_alphas(space, 0)
    names, weights = zip(*mixture.named_parameters(), strict=True)
    values = list(alphas.values())
    batches = [strategies.random_tokens(space.base, 4, 17, seed) for seed in (1, 2)]

    def loss(which, moved=None):
        tokens = batches[which]
        inputs = (tokens[:, :-1], soften(space, alphas, mixture.supernet))
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return functional_call(mixture, moved or {}, inputs, {"targets": tokens[:, 1:]}).loss

    inner = torch.autograd.grad(loss(0), weights, create_graph=True)
    moved = {name: w - XI * g for name, w, g in zip(names, weights, inner, strict=True)}
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss(1, moved), values)])
    found = torch.cat([g.flatten() for g in second_order(lambda: loss(0), lambda: loss(1), weights, values, XI)])
    first = torch.cat([g.flatten() for g in first_order(lambda: loss(1), values)])
    assert (found - expected).norm() < 0.02 * expected.norm()
    assert (first - expected).norm() > 0.1 * expected.norm()
