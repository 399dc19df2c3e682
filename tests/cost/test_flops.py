"""FLOPs against torch's own counter on the real module.

With the `math` backend torch multiplies the whole T x T square of scores and then masks it, so the counter
sees T attended positions for every token: exactly `decode_flops_per_token(context=T)`. A causal kernel does
T (T + 1) / 2 of those T^2 products, which is what `prefill_flops_per_token` counts.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import random_tokens, spaces_with_members
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llmnas.cost import decode_flops_per_token, operations_by_kind, prefill_flops_per_token
from llmnas.nn.elastic_linear import ElasticLinear
from llmnas.nn.expert_linear import ExpertLinear
from llmnas.space import Architecture, BaseModel, LayerSpec
from llmnas.supernet import Transformer, extract


def counted(model, tokens, *arch):
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(tokens, *arch)
    return counter.get_total_flops()


@given(spaces_with_members(max_layers=3), st.integers(1, 2), st.integers(1, 9))
@settings(max_examples=30)
def test_counter_sees_the_whole_square(case, batch, seq):
    space, arch = case
    model = Transformer(space)
    tokens = random_tokens(space.base, batch, seq)
    expected = batch * seq * decode_flops_per_token(arch, space.base, seq)
    assert counted(model, tokens, arch) == expected
    assert counted(extract(model, arch), tokens) == expected


@given(spaces_with_members(max_layers=3), st.integers(1, 9))
def test_the_causal_part_is_what_prefill_counts(case, seq):
    space, arch = case
    square = decode_flops_per_token(arch, space.base, seq)
    linear = decode_flops_per_token(arch, space.base, 0)
    causal = prefill_flops_per_token(arch, space.base, seq)
    assert math.isclose(causal - linear, (square - linear) * torch.ones(seq, seq).tril().mean().item(), rel_tol=1e-5)


@given(spaces_with_members(), st.integers(1, 50))
def test_prefill_is_the_mean_of_decoding_every_position(case, seq):
    space, arch = case
    steps = [decode_flops_per_token(arch, space.base, position) for position in range(1, seq + 1)]
    assert math.isclose(prefill_flops_per_token(arch, space.base, seq), sum(steps) / seq)


@pytest.mark.parametrize(("context", "attention"), [(1, 1), (2048, 2048)])
def test_decoding_by_hand(context, attention):
    arch = Architecture(576, (LayerSpec(3, 3, 64, 1536),) * 30)
    weights = 49_152 * 576 + 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    assert decode_flops_per_token(arch, BaseModel(49_152), context) == 2 * weights + 30 * 4 * 576 * attention


@given(spaces_with_members(max_layers=3, kinds=True), st.integers(1, 9))
@settings(max_examples=20)
def test_operations_by_kind_are_two_for_every_weight_that_a_token_meets(case, context):
    """Counted on the modules; of equal experts a token meets `top_k`."""
    space, arch = case
    small, met = extract(Transformer(space), arch), {"ternary": 0.0, "binary": 0.0}
    for (_, spec), block in zip(arch.kept, small.layers, strict=True):
        for module in block.modules():
            if isinstance(module, ElasticLinear | ExpertLinear) and module.kinds:
                share = spec.top_k / spec.experts if isinstance(module, ExpertLinear) else 1
                met[spec.weights] += 2 * share * module.weight.numel()
    found = operations_by_kind(arch, space.base, context)
    assert {kind: found[kind] for kind in met} == pytest.approx(met)
    assert sum(found.values()) == pytest.approx(decode_flops_per_token(arch, space.base, context))
