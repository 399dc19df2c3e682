"""Activation quantisation, the fused norms and packing, against their twins."""

import pytest
import torch
import triton
import triton.language as tl

from llmnas.nn.kernels import PackedTernary
from llmnas.triton_kernels import reference, ternary_pack, wide_backward
from llmnas.triton_kernels import rmsnorm_quant as rmsnorm_module
from llmnas.triton_kernels import swiglu_norm_quant as swiglu_module
from llmnas.triton_kernels.act_quant import act_quant
from llmnas.triton_kernels.rmsnorm_quant import rmsnorm_backward, rmsnorm_quant
from llmnas.triton_kernels.swiglu_norm_quant import swiglu_norm_backward, swiglu_norm_quant
from llmnas.triton_kernels.ternary_matmul import ternary_matmul

SHAPES = [(1, 1), (7, 63), (63, 7), (3, 500), (2, 727), (0, 64)]
DTYPES = [torch.float32, torch.bfloat16]


@triton.jit
def shift_kernel(x, y, n, by, BLOCK: tl.constexpr):  # noqa: N803
    """y[i] = x[i + by], of which i = n is thrown away."""
    at = tl.arange(0, BLOCK)
    value = tl.load(x + at + by, mask=at <= n, other=0.0)
    tl.store(y + at, value, mask=at < n)


def test_the_guards_see_a_read_whose_value_is_not_used(inside):
    x, y = inside(torch.randn(7)), torch.empty((7,), dtype=torch.float32)
    shift_kernel[(1,)](x, y, 6, 0, 16)
    assert torch.equal(y[:6], x[:6])
    for n, by in ((7, 0), (6, 1), (3, -1)):
        with pytest.raises(Exception, match="outside its tensor"):
            shift_kernel[(1,)](x, y, n, by, 16)


def same_rounding(codes, exact):
    """Equal integers, but for values that lie on the edge between two (sums in another order move them)."""
    on_edge = ((exact - exact.floor()) - 0.5).abs() < 1e-3
    assert ((codes == exact.round()) | (on_edge & ((codes - exact).abs() < 0.51))).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_act_quant_equals_twin(shape, dtype, inside):
    x = inside((torch.randn(shape) * 3).to(dtype))
    codes, scales = act_quant(x)
    want, want_scales = reference.act_quant(x) if len(x) else (x.to(torch.int8), scales)
    assert torch.equal(codes, want)
    assert torch.equal(scales, want_scales)


def test_act_quant_rounds_half_to_even_and_survives_zeros():
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5], [0.0, 0, 0, 0, 0, 0]])
    codes, scales = act_quant(x)
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2], [0] * 6]
    assert scales[0] == 1


@pytest.mark.filterwarnings("error:invalid value encountered in cast")  # the cast of a NaN is undefined
@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero) encountered in [^c]")
def test_a_token_that_is_not_finite_is_not_made_a_number(inside):
    x, packed = torch.randn(4, 64), reference.pack2(torch.randint(-1, 2, (5, 64), dtype=torch.int8))
    x[1, 4], x[2, 0], x[3, 63] = torch.nan, torch.inf, -torch.inf
    one = torch.ones(64)
    plain, normed = act_quant(inside(x)), rmsnorm_quant(inside(x), one, 1e-6)
    assert all(torch.equal(found, want) for found, want in zip(plain, reference.act_quant(x), strict=True))
    for codes, scales, *_ in (plain, normed, swiglu_norm_quant(inside(x), inside(x), one, 1e-6)):
        y = ternary_matmul(codes, scales, packed, torch.tensor(0.8))
        assert y.isnan().all(1).tolist() == [False, True, True, True]
        assert not codes[1:].any()
        assert y[0].isfinite().all()


@pytest.mark.filterwarnings("error:invalid value encountered in cast")
@pytest.mark.filterwarnings("ignore:invalid value encountered in [^c]")
@pytest.mark.parametrize("gamma", [0.8, float("inf"), float("nan")])
def test_a_weight_that_is_not_finite_has_the_code_of_its_twin(gamma, inside):
    weight, gamma = torch.randn(3, 80), torch.tensor(gamma)
    weight[0, 3], weight[1, 63], weight[2, 16] = torch.nan, torch.inf, -torch.inf
    codes = reference.ternary_codes(weight, gamma)
    assert torch.equal(ternary_pack.pack2(inside(weight)[:, :64], gamma), reference.pack2(codes[:, :64]))
    assert torch.equal(ternary_pack.pack3(inside(weight), gamma), reference.pack3(codes))


def test_act_quant_of_a_view_with_gaps(inside):
    x = inside(torch.randn(9, 200))[1:8, :63]
    assert torch.equal(act_quant(x)[0], reference.act_quant(x)[0])


# half precision is fp16 here: the interpreter cuts fp32 to bf16 instead of rounding
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_rmsnorm_quant(shape, dtype, with_residual, inside):
    x, gain = inside(torch.randn(shape).to(dtype)), inside(torch.rand(shape[1]) + 0.5)
    residual = inside(torch.randn(shape).to(dtype)) if with_residual else None
    codes, scales, stream, inverses = rmsnorm_quant(x, gain, 1e-6, residual)
    assert codes.shape == x.shape
    if not len(x):
        return
    assert torch.equal(stream, reference.add_rounded(x, residual))
    normal, want = reference.rms(stream, gain, 1e-6)
    torch.testing.assert_close(inverses, want)
    torch.testing.assert_close(scales, reference.act_quant(normal)[1])
    same_rounding(codes, normal * scales[:, None])


@pytest.mark.parametrize("shape", SHAPES)
def test_swiglu_norm_quant(shape, inside):
    gate, up, gain = inside(torch.randn(shape)), inside(torch.randn(shape)), inside(torch.rand(shape[1]) + 0.5)
    codes, scales, inverses = swiglu_norm_quant(gate, up, gain, 1e-6)
    assert codes.shape == gate.shape
    if not len(gate):
        return
    normal, want = reference.rms(torch.nn.functional.silu(gate) * up, gain, 1e-6)
    torch.testing.assert_close(inverses, want)
    torch.testing.assert_close(scales, reference.act_quant(normal)[1])
    same_rounding(codes, normal * scales[:, None])


@pytest.fixture(params=[False, True], ids=["row in registers", "row in blocks"])
def blocks(request, monkeypatch):
    """Few programs, so that each sums several tokens; rows of every length, as those beyond `WIDEST` go."""
    for module in (rmsnorm_module, swiglu_module):
        monkeypatch.setattr(module, "PROGRAMS", 16)
        if request.param:
            monkeypatch.setattr(module, "WIDEST", 0)
    monkeypatch.setattr(wide_backward, "GAIN_PROGRAMS", 16)
    monkeypatch.setattr(wide_backward, "BLOCK", 32)


@pytest.mark.parametrize("shape", [(1, 7), (40, 63), (0, 5)])
@pytest.mark.parametrize("with_stream", [False, True])
def test_rmsnorm_backward_equals_autograd(with_stream, shape, blocks, inside):
    x, gain = torch.randn(shape, requires_grad=True), torch.rand(shape[1], requires_grad=True)
    grad, stream_grad = torch.randn(shape), torch.randn(shape) * with_stream
    normal, inverses = reference.rms(x, gain, 1e-6)
    want = torch.autograd.grad((normal * grad).sum() + (x * stream_grad).sum(), (x, gain))
    inputs = [inside(value.detach()) for value in (grad, x, gain, inverses)]
    got = rmsnorm_backward(*inputs, inside(stream_grad) if with_stream else None)
    for have, expect in zip(got, want, strict=True):
        torch.testing.assert_close(have, expect, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 7), (40, 63), (0, 5)])
def test_swiglu_norm_backward_equals_autograd(shape, blocks, inside):
    gate, up = torch.randn(shape, requires_grad=True), torch.randn(shape, requires_grad=True)
    gain, grad = torch.rand(shape[1], requires_grad=True), torch.randn(shape)
    normal, inverses = reference.rms(torch.nn.functional.silu(gate) * up, gain, 1e-6)
    want = torch.autograd.grad((normal * grad).sum(), (gate, up, gain))
    inputs = [inside(value.detach()) for value in (grad, gate, up, gain, inverses)]
    for have, expect in zip(swiglu_norm_backward(*inputs), want, strict=True):
        torch.testing.assert_close(have, expect, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 64), (7, 192), (63, 704), (0, 64)])
def test_two_bits(shape, dtype, inside):
    weight = inside(torch.randn(shape).to(dtype))
    gamma = torch.tensor(0.8)
    packed, codes = ternary_pack.pack2(weight, gamma), reference.ternary_codes(weight, gamma)
    assert torch.equal(packed, reference.pack2(codes))
    assert torch.equal(ternary_pack.unpack2(inside(packed)), codes)


@pytest.mark.parametrize("shape", [(1, 1), (7, 63), (3, 80), (5, 500), (2, 727), (0, 64), (3, 0)])
def test_five_in_a_byte(shape, inside):
    weight = inside(torch.randn(shape))
    gamma = torch.tensor(0.8)
    packed, codes = ternary_pack.pack3(weight, gamma), reference.ternary_codes(weight, gamma)
    assert torch.equal(packed, reference.pack3(codes))
    assert torch.equal(ternary_pack.unpack3(inside(packed), shape[1]), codes)


def test_ties_and_outliers_of_weights():
    weight = torch.tensor([0.5, 1.5, -0.5, -1.5, 1e30, -1e30, 0.51, -0.51] * 8)[None]
    codes = ternary_pack.unpack2(ternary_pack.pack2(weight, torch.tensor(1.0)))
    assert codes[0, :8].tolist() == [0, 1, 0, -1, 1, -1, 1, -1]


def test_packed_slice_is_slice_packed(inside):
    weight, gamma = torch.randn(20, 256), torch.tensor(0.8)
    packed = ternary_pack.pack2(weight, gamma)
    for out in (1, 7, 20):
        for groups in (1, 2, 3, 4):
            view = PackedTernary(packed, gamma).leading(out, 64 * groups).codes
            assert view.data_ptr() == packed.data_ptr()
            assert torch.equal(view, ternary_pack.pack2(inside(weight)[:out, : 64 * groups], gamma))
