"""NaN, infinities and numbers out of range on their way to integers: the same on every processor, and never ordinary.

What a plain cast makes of them is undefined: it changes with the processor and with the place in a vector register.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmnas.nn import kernels, packed_cpu, packed_products
from llmnas.nn.elastic_linear import ElasticLinear
from llmnas.nn.expert_linear import ExpertLinear
from llmnas.nn.lowbit import inputs
from llmnas.nn.ternary import magnitude, read_input
from llmnas.triton_kernels import reference

SPECIAL = (np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 1e-38, -3.4e38, 3.4e38, 1e-6, 127.5, 1e10)
NUMBERS = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32, allow_subnormal=True))
TOKENS = st.lists(st.lists(NUMBERS, min_size=21, max_size=21), min_size=1, max_size=4)  # no multiple of a register


def as_equation(row):
    """Codes and scale of one token from Python's own numbers, in the roundings of fp32."""
    if not all(np.isfinite(row)):
        return [0] * len(row), 0.0
    scale = np.float32(np.float32(1) / np.float32(max(1e-5, *np.abs(row)))) * np.float32(127)
    return [max(-128, min(127, round(float(value * scale)))) for value in row], float(scale)


@given(TOKENS)
@settings(max_examples=60)
def test_every_float_has_one_integer_on_every_path(rows):
    x = np.array(rows, dtype=np.float32)
    with np.errstate(over="ignore"):
        wanted = [as_equation(row) for row in x]
    tokens = torch.from_numpy(x)
    plain = kernels.quantise(tokens, packed=False)
    for codes, scales in (reference.act_quant(tokens), packed_cpu.quantise(tokens), (plain.codes, plain.scales)):
        assert list(zip(codes.tolist(), scales.tolist(), strict=True)) == wanted


@given(st.lists(NUMBERS, min_size=1, max_size=70), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
@settings(max_examples=60)
def test_integers_end_at_their_ends_and_nan_is_zero(values, dtype):
    values = torch.tensor(values, dtype=dtype)
    whole = [0 if v != v else max(-128, min(127, v)) for v in values.tolist()]
    assert reference.to_int8(values).tolist() == [int(v) for v in whole]


@given(st.lists(NUMBERS, min_size=80, max_size=80), st.sampled_from([0.5, 1e-5, np.inf, np.nan]))
@settings(max_examples=60)
def test_every_weight_has_one_of_three_codes(row, gamma):
    weight = torch.tensor([row], dtype=torch.float32)
    ratio = weight.double() / gamma
    codes = reference.ternary_codes(weight, torch.tensor(gamma, dtype=torch.float32))
    assert set(codes.flatten().tolist()) <= {-1, 0, 1}
    assert not codes[ratio.isnan()].any()
    assert (codes[ratio > 0.6] == 1).all()
    assert (codes[ratio < -0.6] == -1).all()
    assert not codes[ratio.abs() < 0.4].any()
    assert torch.equal(reference.unpack3(reference.pack3(codes), 80), codes)
    assert torch.equal(reference.unpack2(reference.pack2(codes[:, :64])), codes[:, :64])


def random(linear):
    """A layer with weights at random."""
    with torch.no_grad():
        linear.weight.normal_(generator=torch.Generator().manual_seed(0))
    return linear


def products(x, kind):
    """Every way a low-bit product of tokens [M, 64] is computed on a CPU, [M, 8] each."""
    layer, experts = random(ElasticLinear(64, 8, kinds=(kind,))), random(ExpertLinear(2, 64, 8, kinds=(kind,)))
    seen = inputs(x, kind, layer, signed=False)
    packed = kernels.quantise(x, packed=True)
    scale = magnitude(layer.weight, kind)
    yield layer(seen, 8, kind)
    yield layer(read_input(x, kind, signed=False), 8, kind)
    yield experts(seen, 8, torch.tensor([1, len(x)], dtype=torch.int32), kind)
    if kind == "ternary":
        yield kernels.packed_linear(packed, kernels.pack(layer.weight.detach(), scale))
    else:
        yield kernels.packed_binary_linear(packed, kernels.pack_signs(layer.weight.detach()), scale)


@pytest.mark.parametrize("numba", [True, False], ids=["numba", "torch"])
@pytest.mark.parametrize("vnni", [True, False], ids=["vnni", "any processor"])
@pytest.mark.parametrize("kind", ["ternary", "binary"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_token_that_is_not_finite_stays_so(value, kind, vnni, numba, monkeypatch):
    """At every place, in few and in many tokens; the tokens beside it do not see it."""
    if vnni and not packed_cpu.HAS_VNNI:
        pytest.skip("this processor has no AVX-512 VNNI")
    monkeypatch.setattr(packed_cpu, "HAS_VNNI", vnni)
    monkeypatch.setattr(packed_products, "compiled", lambda: numba)
    x = torch.randn(40, 64)
    bad = torch.arange(1, 40, 3)
    x[bad, 5 * bad % 64] = value
    for y in products(x, kind):
        assert y[bad].isnan().all()
        assert y[torch.arange(0, 40, 3)].isfinite().all()


@pytest.mark.parametrize("kind", ["ternary", "binary"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("stored", [False, True])
def test_a_weight_that_is_not_finite_is_no_ordinary_network(value, kind, stored):
    """Its codes are integers; the scale of its matrix (binary: of its row) says what they cannot, a stored one too."""
    layer = random(ElasticLinear(64, 8, kinds=(kind,)))
    if stored:
        layer.get_buffer(f"{kind}_scale").copy_(magnitude(layer.weight, kind))
    with torch.no_grad():
        layer.weight[2, 7] = value
    x = torch.randn(3, 64, requires_grad=True)
    y = layer(inputs(x, kind, layer, signed=False), 8, kind)
    assert not (y if kind == "ternary" else y[:, 2]).isfinite().any()
    y.sum().backward()
    assert not x.grad.isfinite().any()


def test_half_precision_tokens_that_are_tiny_have_a_scale():
    """127 / 1e-5 is infinite in fp16: zeros became NaN and all else the largest integer."""
    x = torch.zeros(2, 8, dtype=torch.float16)
    x[0, 3] = 1e-4
    found = kernels.quantise(x, packed=False)
    assert found.codes[0].tolist() == [0, 0, 0, 127, 0, 0, 0, 0]
    assert not found.codes[1].any()
    assert found.scales.isfinite().all()
    torch.testing.assert_close(read_input(x, "ternary"), x)
