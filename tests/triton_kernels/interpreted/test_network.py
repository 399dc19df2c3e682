"""Whole networks: what the layers compute through the Triton kernels is what they compute in torch, gradients included.

fp32, so the two differ by the order of sums, and by a rounding of an activation that such a difference moves over the
edge between two integers: few, and one step of 1/127 each.
"""

from dataclasses import replace

import pytest
import torch

from llmnas.nn import kernels
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec, SearchSpace
from llmnas.supernet import Transformer

BASE = BaseModel(vocab_size=32, max_seq=16)
TERNARY = LayerSpec(1, 2, 32, 64, weights="ternary", mixer="mlgru")
ATTENTION = LayerSpec(2, 2, 32, 64, weights="ternary")
# with attention: an MLGRU's first candidate may be exactly zero in integers and +-1e-8 in floats, of either sign
BINARY = LayerSpec(1, 2, 32, 64, weights="binary")
NETWORKS = {
    "ternary mlgru": Architecture(64, (TERNARY,)),
    "ternary attention": Architecture(64, (ATTENTION,)),
    "binary": Architecture(64, (BINARY,)),
    "mixed": Architecture(64, (BINARY, LayerSpec(2, 2, 32, 64), ATTENTION)),
    "experts": Architecture(64, (replace(ATTENTION, experts=3, top_k=2), replace(BINARY, experts=2, shared_experts=1))),
    "sizes that no kernel takes": Architecture(40, (LayerSpec(1, 1, 8, 24, weights="ternary", mixer="mlgru"),)),
}


@pytest.fixture(autouse=True)
def guarded_memory():
    """Torch allocates a whole network's tensors here, and through other arguments than the kernels'."""


def both(monkeypatch, model, arch, documents=None):
    """(loss, gradients) of the Triton path and of the torch path, and how many launches the first made."""
    text = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(1))
    found, launched = [], []
    real = kernels.takes_triton
    for triton in (True, False):
        monkeypatch.setattr(kernels, "takes_triton", lambda x, on=triton: on and (launched.append(x.shape) or real(x)))
        model.zero_grad()
        loss = model(text[:, :-1], arch, targets=text[:, 1:], documents=documents).loss
        loss.backward()
        found.append((loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    assert launched
    return found


def compare(found):
    (triton, gradients), (plain, wanted) = found
    torch.testing.assert_close(triton, plain, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == wanted.keys()
    for name, want in wanted.items():
        # of the largest gradient: one moved integer is 1/127 of one activation
        assert (gradients[name] - want).abs().max() <= 2e-2 * want.abs().max() + 1e-7, name
        assert (gradients[name] - want).norm() <= 1e-2 * want.norm() + 1e-7, name


LONG = ("ternary attention", "binary")  # `mixed` has their layers


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.full if n in LONG else ()) for n in NETWORKS])
def test_network_forward_and_backward(name, monkeypatch):
    arch = NETWORKS[name]
    compare(both(monkeypatch, Transformer(FixedShape(BASE, arch), seed=3), None))


def test_leading_slices_and_documents(monkeypatch):
    space = SearchSpace.from_dict({
        "base": {"vocab_size": 32, "max_seq": 16}, "layers": 2, "hidden_size": [64, 128], "depth": [1, 2],
        "kv_heads": [1, 2], "queries_per_group": [1, 2], "head_dim": [32, 64], "ffn_size": [64, 128],
        "weights": ["ternary", "dense"], "mixer": ["mlgru", "attention"],
    })  # fmt: skip
    model = Transformer(space, seed=3)
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2]] * 2)
    for hidden, spec in (
        (64, TERNARY),
        (128, LayerSpec(1, 2, 64, 64, weights="ternary", mixer="mlgru")),
        (64, ATTENTION),
    ):
        compare(both(monkeypatch, model, Architecture(hidden, (spec, None)), documents))
