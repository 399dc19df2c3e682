"""RMSNorm against its formula in float64, over the active width only."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from llmnas.nn.norm import rms_norm


@given(st.integers(1, 40), st.integers(0, 8), st.sampled_from([1e-6, 1e-5, 0.1]), st.sampled_from([1e-3, 1.0, 100.0]))
def test_it_is_the_formula(width, spare, eps, scale):
    generator = torch.Generator().manual_seed(width)
    x = scale * torch.randn(2, 3, width, generator=generator)
    gain = torch.randn(width + spare, generator=generator)
    wide = x.double()
    expected = wide / (wide.pow(2).sum(-1, keepdim=True) / width + eps).sqrt() * gain[:width].double()
    torch.testing.assert_close(rms_norm(x, gain, eps).double(), expected, rtol=1e-5, atol=1e-5)


@given(st.integers(1, 8), st.integers(1, 8))
def test_gradients_stay_in_the_active_part(width, spare):
    x = torch.randn(4, width, dtype=torch.float64, requires_grad=True)
    gain = torch.randn(width + spare, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, g: rms_norm(a, g, 1e-5), (x, gain))
    rms_norm(x, gain, 1e-5).sum().backward()
    assert (gain.grad[width:] == 0).all()
    assert (gain.grad[:width] != 0).any()


def test_the_scale_of_the_input_does_not_matter():
    x, gain = torch.randn(3, 16, dtype=torch.float64), torch.rand(16, dtype=torch.float64)
    torch.testing.assert_close(rms_norm(7 * x, gain, 1e-12), rms_norm(x, gain, 1e-12))


def test_zeros_stay_zero():
    assert (rms_norm(torch.zeros(2, 4), torch.ones(4), 1e-5) == 0).all()
