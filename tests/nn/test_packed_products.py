"""Products with packed weights give the same numbers with and without numba."""

import pytest
import torch
from torch import nn

from llmnas.nn import kernels, packed_products


def answers(x, weight):
    """What a layer gives for tokens that have signs and for such that have none."""
    tokens = kernels.quantise(x, packed=True)
    binary = kernels.pack_signs(weight)
    alpha = weight.abs().mean(1)
    found = [tokens.codes, tokens.scales, *(kernels.packed_binary_linear(seen, binary, alpha) for seen in (x, tokens))]
    if x.shape[1] % kernels.GROUP == 0:
        found.append(kernels.packed_linear(tokens, kernels.pack(weight, weight.abs().mean())))
    return found


@pytest.mark.parametrize(("m", "k", "n"), [(1, 64, 5), (3, 96, 1), (40, 192, 70)])
def test_without_numba_the_bits_are_the_same(m, k, n, monkeypatch):
    generator = torch.Generator().manual_seed(k)
    x, weight = (nn.init.normal_(torch.empty(rows, k), generator=generator) for rows in (m, n))
    x[0, 0] = 0
    wanted = answers(x, weight)
    monkeypatch.setattr(packed_products, "compiled", lambda: False)
    for found, want in zip(answers(x, weight), wanted, strict=True):
        assert torch.equal(found, want)


def test_numba_is_found_here():
    assert packed_products.compiled()
