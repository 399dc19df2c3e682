"""The eigenvalue against the whole Hessian; the stopping rule against its sentence."""

import math

import numpy as np
import pytest
import strategies
import torch

from llmnas.space import SearchSpace
from llmnas.supernet.mixture import Mixture, first_alphas, soften
from llmnas.train.spectrum import dominant_eigenvalue, smoothed, stopping_point


@pytest.mark.parametrize("values", [[3.0], [2.0, -5.0], [1.0, 0.5, -0.2, 0.1], np.linspace(-1, 4, 30)])
def test_eigenvalue_of_a_quadratic_form(values):
    """L = a^T Q diag(values) Q^T a / 2 has the Hessian that is written there."""
    generator = torch.Generator().manual_seed(0)
    n = len(values)
    q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    hessian = q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.T
    a = torch.randn(n, generator=generator, dtype=torch.float64)
    alphas = [part.clone().requires_grad_() for part in (a[: n // 2], a[n // 2 :]) if len(part)]

    def loss():
        whole = torch.cat(alphas)
        return whole @ hessian @ whole / 2

    expected = max(values, key=abs)
    assert dominant_eigenvalue(loss, alphas) == pytest.approx(expected, rel=2e-3)


def test_eigenvalue_of_a_supernet_is_that_of_its_whole_hessian():
    space = SearchSpace.from_dict(
        {
            "base": {"vocab_size": 40, "max_seq": 32}, "layers": 2, "hidden_size": [8, 16],
            "depth": {"choices": [1, 2]}, "kv_heads": [1, 2], "queries_per_group": 1, "head_dim": [2, 4],
            "ffn_size": {"choices": [8, 24], "per_layer": True},
            "mixer": {"choices": ["none", "mlgru", "attention"], "per_layer": True},
        }
    )  # fmt: skip
    mixture = Mixture(strategies.scrambled(space))
    alphas = {name: torch.randn_like(alpha) for name, alpha in first_alphas(space, 0).items()}
    tokens = strategies.random_tokens(space.base, 2, 9)

    def loss(*values):
        soft = soften(space, dict(zip(alphas, values, strict=True)), mixture.supernet)
        return mixture(tokens[:, :-1], soft, targets=tokens[:, 1:]).loss

    values = tuple(alpha.requires_grad_() for alpha in alphas.values())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        blocks = torch.autograd.functional.hessian(loss, values)
    rows = [torch.cat([b.reshape(v.numel(), -1) for b in row], 1) for row, v in zip(blocks, values, strict=True)]
    spectrum = torch.linalg.eigvalsh(torch.cat(rows).double())
    expected = float(max(spectrum, key=abs))
    found = dominant_eigenvalue(lambda: loss(*values), values)
    assert found == pytest.approx(expected, rel=5e-3)
    assert dominant_eigenvalue(lambda: loss(*values), values) == found  # bit for bit


def test_a_loss_that_is_not_finite_has_no_eigenvalue():
    a = torch.ones(3, requires_grad=True)
    assert math.isnan(dominant_eigenvalue(lambda: (a * math.inf).square().sum(), [a]))


def test_smoothing_is_a_mean_over_the_last_points():
    found = smoothed([1.0, -3.0, 2.0, 6.0], 2)
    assert math.isnan(found[0])
    assert found[1:] == [2.0, 2.5, 4.0]


@pytest.mark.parametrize(
    ("eigenvalues", "expected"),
    [
        ([1, 1, 1, 1, 1, 1], None),
        ([1, 1, 1.3, 1.3, 1.3], None),  # 1 / 1.3 = 0.77: not enough
        ([1, 1, 1.4, 1.4, 1.4], 1),  # means 1, 1.2, 1.4, 1.4: the first that grew by 4/3 is point 3, 1 / 1.4
        ([4, 3, 2, 1], None),
        ([1, 1], None),
        ([1, math.nan, 9, 9, 9], None),
    ],
)
def test_the_search_goes_back_to_where_the_growth_began(eigenvalues, expected):
    assert stopping_point(eigenvalues, 2) == expected
