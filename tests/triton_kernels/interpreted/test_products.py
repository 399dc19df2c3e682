"""Packed ternary and binary products against their twins (exact), and the training layer against the detach trick."""

import pytest
import torch

from llmnas.nn.kernels import PackedTernary
from llmnas.triton_kernels import reference, ternary_linear
from llmnas.triton_kernels.act_quant import act_quant
from llmnas.triton_kernels.ternary_matmul import ternary_matmul
from llmnas.triton_kernels.xnor_matmul import pack1, xnor_matmul

GAMMA = torch.tensor(0.37)


def packed_weight(n, k):
    return reference.pack2(torch.randint(-1, 2, (n, k), dtype=torch.int8))


@pytest.mark.parametrize("m", [0, 1, 2, 3, 4, 5, 7, 17, 63])
@pytest.mark.parametrize(("n", "k"), [(1, 64), (63, 192), (7, 704)])
def test_ternary_product_is_exact(m, n, k, inside):
    x, packed = torch.randn(m, k), inside(packed_weight(n, k))
    codes, scales = act_quant(inside(x))
    assert torch.equal(
        ternary_matmul(inside(codes), scales, packed, GAMMA), reference.ternary_matmul(codes, scales, packed, GAMMA)
    )


@pytest.mark.parametrize(("m", "n", "k"), [(1, 727, 64), (7, 500, 64), (500, 7, 64), (727, 1, 64)])
def test_ternary_product_is_exact_on_many_rows(m, n, k, inside):
    test_ternary_product_is_exact(m, n, k, inside)


@pytest.mark.full
@pytest.mark.parametrize("m", [1, 7, 63, 130, 500])
@pytest.mark.parametrize(("n", "k"), [(500, 512), (727, 768), (130, 4096)])
def test_ternary_product_is_exact_on_large_shapes(m, n, k, inside):
    test_ternary_product_is_exact(m, n, k, inside)


@pytest.mark.parametrize("m", [1, 3, 6])
def test_every_slice_of_a_packed_weight(m, inside):
    packed = inside(packed_weight(9, 256))
    for n in range(1, 10, 4):
        for k in (64, 128, 192, 256):
            codes, scales = act_quant(torch.randn(m, 256)[:, :k])
            y = ternary_matmul(codes, scales, PackedTernary(packed, GAMMA).leading(n, k).codes, GAMMA)
            whole = torch.nn.functional.pad(codes, (0, 256 - k))
            assert torch.equal(y, reference.ternary_matmul(whole, scales, packed, GAMMA)[:, :n])


@pytest.mark.parametrize("m", [2, 6])
def test_codes_that_lie_apart(m, inside):
    codes = inside(torch.randint(-127, 128, (m, 256), dtype=torch.int8))[:, 64:128]
    packed, scales = packed_weight(8, 64), torch.rand(m) + 1
    y = ternary_matmul(codes, scales, packed, GAMMA)
    assert torch.equal(y, reference.ternary_matmul(codes, scales, packed, GAMMA))


def test_largest_sums_do_not_wrap():
    codes, packed = (
        torch.full((1, 8192), -127, dtype=torch.int8),
        reference.pack2(torch.ones(1, 8192, dtype=torch.int8)),
    )
    assert ternary_matmul(codes, torch.ones(1), packed, torch.tensor(1.0)).item() == -127 * 8192


@pytest.mark.parametrize("m", [0, 1, 3, 4, 5, 63])
@pytest.mark.parametrize(("n", "k"), [(1, 32), (70, 96), (7, 4128)])
def test_xnor_product_is_exact(m, n, k, inside):
    x, w = inside(torch.randn(m, k)), inside(torch.randn(n, k + 64))
    x_bits, w_bits = pack1(x), pack1(w)
    if m:
        assert torch.equal(x_bits, reference.pack1(x))
    beta, alpha = torch.rand(m), torch.rand(n)
    y = xnor_matmul(inside(x_bits), inside(w_bits)[:, : k // 32], beta, alpha)
    signs = torch.where(x >= 0, 1.0, -1.0) @ torch.where(w[:, :k] >= 0, 1.0, -1.0).T
    assert torch.equal(y, signs * beta[:, None] * alpha)


@pytest.mark.parametrize("m", [1, 7, 40])
@pytest.mark.parametrize(("out", "k"), [(100, 192), (70, 128), (1, 64)])
def test_linear_and_its_gradients_equal_the_detach_trick(m, out, k, inside):
    weight = inside(torch.randn(100, 192)).requires_grad_()
    gamma = weight.detach().abs().mean()
    x, grad = inside(torch.randn(m, k)).requires_grad_(), torch.randn(m, out)
    y = ternary_linear.ternary_linear(ternary_linear.quantise(x), weight, gamma, out)
    want = reference.ternary_linear(x, weight[:out, :k], gamma)
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-4)
    for have, expect in zip(
        torch.autograd.grad(y, (x, weight), grad), torch.autograd.grad(want, (x, weight), grad), strict=True
    ):
        torch.testing.assert_close(have, expect, rtol=1e-4, atol=1e-4)


def test_no_token_leaves_a_zero_gradient(inside):
    weight = inside(torch.randn(64, 64)).requires_grad_()
    y = ternary_linear.ternary_linear(ternary_linear.quantise(torch.randn(0, 64)), weight, GAMMA, 64)
    y.sum().backward()
    assert y.shape == (0, 64)
    assert not weight.grad.any()


def test_ternary_swiglu_block_trains_like_plain_torch(inside):
    """residual + norm + quantise -> gate, up -> SwiGLU + norm + quantise -> down: all kernels, one graph."""
    shapes = {"x": (5, 64), "residual": (5, 64), "g1": (64,), "g2": (128,), "gate": (128, 64), "up": (128, 64)}
    values = {
        name: inside(torch.randn(shape)).requires_grad_() for name, shape in (shapes | {"down": (64, 128)}).items()
    }
    gammas = {name: values[name].detach().abs().mean() for name in ("gate", "up", "down")}
    v = values

    def fused():
        seen, stream = ternary_linear.norm_quantise(v["x"], v["g1"], 1e-6, v["residual"])
        gate, up = (ternary_linear.ternary_linear(seen, v[name], gammas[name], 128) for name in ("gate", "up"))
        inner = ternary_linear.swiglu_norm_quantise(gate, up, v["g2"], 1e-6)
        return stream + ternary_linear.ternary_linear(inner, v["down"], gammas["down"], 64)

    def plain():
        stream = v["x"] + v["residual"]
        seen = reference.rms(stream, v["g1"], 1e-6)[0]
        gate, up = (reference.ternary_linear(seen, v[name], gammas[name]) for name in ("gate", "up"))
        inner = reference.rms(torch.nn.functional.silu(gate) * up, v["g2"], 1e-6)[0]
        return stream + reference.ternary_linear(inner, v["down"], gammas["down"])

    weights = torch.randn(5, 64)
    have = torch.autograd.grad((fused() * weights).sum(), list(values.values()))
    want = torch.autograd.grad((plain() * weights).sum(), list(values.values()))
    for name, got, expect in zip(values, have, want, strict=True):
        torch.testing.assert_close(got, expect, rtol=2e-3, atol=2e-3, msg=lambda text, name=name: f"{name}: {text}")
