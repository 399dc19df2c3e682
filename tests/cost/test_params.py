"""Parameter counts against real modules and against published totals."""

import pytest
import torch
from hypothesis import given, settings
from strategies import spaces_with_members

from llmnas.cost import count_params
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec
from llmnas.supernet import Transformer, extract

PUBLISHED = {
    "SmolLM2-135M": (134_515_008, BaseModel(49_152), Architecture(576, (LayerSpec(3, 3, 64, 1536),) * 30)),
    "Llama-3.2-1B": (1_235_814_400, BaseModel(128_256), Architecture(2048, (LayerSpec(8, 4, 64, 8192),) * 16)),
    "Qwen3-0.6B": (
        596_049_920,
        BaseModel(151_936, qk_norm=True),
        Architecture(1024, (LayerSpec(8, 2, 128, 3072),) * 28),
    ),
    "untied with biases, by hand": (
        160  # embedding and head, 10 x 8 each
        + 8  # final norm
        + 16  # two norms
        + (8 * 8 + 8)
        + 2 * (8 * 4 + 4)  # q: 2 heads of 4; k and v: 1 head of 4; with biases
        + 8 * 8  # o
        + 3 * 8 * 5,  # gate, up, down
        BaseModel(10, tied=False, qkv_bias=True),
        Architecture(8, (LayerSpec(1, 2, 4, 5), None)),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_totals(name):
    total, base, arch = PUBLISHED[name]
    assert count_params(arch, base).total == total
    with torch.device("meta"):
        model = Transformer(FixedShape(base, arch.compact()))
    assert sum(p.numel() for p in model.parameters()) == total


@given(spaces_with_members())
@settings(max_examples=50)
def test_counts_are_those_of_the_module(case):
    space, arch = case
    supernet = Transformer(space)
    for module, a in ((extract(supernet, arch), arch), (supernet, space.envelope)):
        count = count_params(a, space.base)
        assert count.total == count.active == sum(p.numel() for p in module.parameters())
        embeddings = [p for name, p in module.named_parameters() if name in {"embedding", "head"}]
        assert count.embedding == sum(p.numel() for p in embeddings)
        assert len(embeddings) == (1 if space.base.tied else 2)
    assert count_params(arch, space.base) == count_params(arch.compact(), space.base)
