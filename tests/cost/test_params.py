"""Parameter counts against real modules and against published totals.

GPT-2's and Pythia's totals are not among them: learned positions, LayerNorm and biases everywhere are in no member of
this family.
"""

import pytest
import torch
from hypothesis import given, settings
from strategies import spaces_with_members

from llmnas.cost import count_params
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec
from llmnas.supernet import Transformer, extract

MIXTURE = LayerSpec(4, 8, 128, 768, experts=128, top_k=8)
SHARED = LayerSpec(16, 1, 128, 1408, experts=60, top_k=4, shared_experts=4)
FINE = LayerSpec(16, 1, 128, 1408, experts=64, top_k=6, shared_experts=2)
PUBLISHED = {
    "Qwen1.5-MoE-A2.7B": (
        14_315_784_192,
        BaseModel(151_936, tied=False, qkv_bias=True, shared_gate=True),
        Architecture(2048, (SHARED,) * 24),
    ),
    "deepseek-moe-16b-base": (
        16_375_728_128,
        BaseModel(102_400, tied=False),
        Architecture(2048, (LayerSpec(16, 1, 128, 10_944), *(FINE,) * 27)),
    ),
    "Qwen3-30B-A3B": (
        30_532_122_624,
        BaseModel(151_936, tied=False, qk_norm=True),
        Architecture(2048, (MIXTURE,) * 48),
    ),
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


def test_published_active_parameters():
    _, base, arch = PUBLISHED["Qwen3-30B-A3B"]
    assert count_params(arch, base).active == 3_353_032_704


@given(spaces_with_members() | spaces_with_members(kinds=True))
@settings(max_examples=100)
def test_counts_are_those_of_the_module(case):
    space, arch = case
    supernet = Transformer(space)
    small = extract(supernet, arch)
    one_kind = len(space.weights.choices) == len(space.mixer.choices) == 1
    for module, a in ((small, arch), *([(supernet, space.envelope)] if one_kind else [])):
        count = count_params(a, space.base)
        assert count.total == sum(p.numel() for p in module.parameters())
        idle = sum((s.experts - s.top_k) * 3 * a.hidden_size * s.ffn_size for _, s in a.kept)
        assert count.active == count.total - idle
        embeddings = [p for name, p in module.named_parameters() if name in {"embedding.weight", "head.weight"}]
        assert count.embedding == sum(p.numel() for p in embeddings)
        assert len(embeddings) == (1 if space.base.tied else 2)
    assert count_params(arch, space.base) == count_params(arch.compact(), space.base)
