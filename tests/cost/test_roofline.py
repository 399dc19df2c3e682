"""Rooflines and the energy model, recomputed from their definitions."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import spaces_with_members

from llmnas.cost import Workload, decode_flops_per_token, memory, prefill_flops_per_token
from llmnas.cost.energy import energy_model, modelled_energy_j
from llmnas.cost.roofline import GPUS, gpu, layer_work, roofline_ms, work
from llmnas.errors import UserError
from llmnas.space import Architecture, BaseModel, LayerSpec

BASE = BaseModel(vocab_size=32000, max_seq=2048)
LAYER = LayerSpec(kv_heads=8, queries_per_group=4, head_dim=128, ffn_size=14336)
BIG = Architecture(4096, (LAYER,) * 32)


def test_decode_of_a_large_network_is_its_bytes_over_the_bandwidth():
    workload = Workload(batch=1, context=1024, bytes_per_value=2)
    h = 4096
    matrices = h * 128 * (2 * 32 + 2 * 8) + 3 * h * 14336 + 2 * h
    block = 2 * (matrices + 2 * h + 1024 * 2 * 8 * 128)
    head = 2 * (32000 * h + 32000 + h)
    for device in GPUS.values():
        expected = 1e3 * (32 * block + head) / device.bandwidth
        assert roofline_ms(BIG, BASE, workload, "decode", device) == pytest.approx(expected, rel=1e-12)


def test_prefill_of_a_large_network_is_its_operations_over_the_peak():
    workload = Workload(batch=4, context=2048, bytes_per_value=2)
    h = 4096
    block = 2 * (h * 128 * 80 + 3 * h * 14336) + 4 * 32 * 128 * 2049 / 2
    a100 = GPUS["a100"]
    head = 2 * (32000 * h + 4 * (32000 + h)) / a100.bandwidth
    expected = 1e3 * (32 * 4 * 2048 * block / a100.flops + head)
    assert roofline_ms(BIG, BASE, workload, "prefill", a100) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["ternary", "binary"])
def test_low_bit_products_run_at_the_rate_of_int8(kind):
    """A lower bound of a ternary network must not assume bf16's rate: reading a prompt is bound by operations."""
    workload, h = Workload(batch=4, context=2048), 4096
    arch = Architecture(h, (replace(BIG.layers[0], weights=kind),))
    products = 2 * 4 * 2048 * (h * 128 * 80 + 3 * h * 14336)
    scores = 4 * 2048 * 4 * 32 * 128 * 2049 / 2
    for device in GPUS.values():
        head = 2 * (32000 * h + 4 * (32000 + h)) / device.bandwidth
        expected = 1e3 * (products / device.int8 + scores / device.flops + head)
        assert roofline_ms(arch, BASE, workload, "prefill", device) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=12)
@given(spaces_with_members(kinds=True), st.integers(1, 3), st.integers(1, 16), st.sampled_from([2, 4]))
def test_pieces_add_up_to_the_closed_forms(case, batch, context, size):
    space, arch = case
    workload = Workload(batch, context, size)
    head = 2 * space.base.vocab_size * arch.hidden_size
    decode = sum(piece.flops for piece in work(arch, space.base, workload, "decode"))
    assert decode == pytest.approx(batch * decode_flops_per_token(arch, space.base, context))
    prefill = sum(piece.flops for piece in work(arch, space.base, workload, "prefill"))
    # the head is read out at the last position only
    inside = prefill_flops_per_token(arch, space.base, context) - head
    assert prefill == pytest.approx(batch * (context * inside + head))
    moved = sum(piece.bytes for piece in work(arch, space.base, workload, "decode"))
    assert 0 < moved <= 2 * memory(arch, space.base, workload).total + 8 * batch * (arch.depth + 1) * 200


def test_one_token_reads_the_weights_of_its_experts_only():
    dense, sparse = (LayerSpec(1, 1, 4, 64, experts=e, top_k=k) for e, k in ((1, 1), (8, 2)))
    base, workload = BaseModel(vocab_size=8, max_seq=16), Workload(1, 16, 4)

    def moved(spec, batch, phase):
        return layer_work(base, 16, spec, replace(workload, batch=batch), phase).bytes

    one_expert, router = 4 * 3 * 16 * 64, 4 * 16 * 8
    assert moved(sparse, 1, "decode") - moved(dense, 1, "decode") == one_expert + router
    assert moved(sparse, 2, "decode") - moved(dense, 2, "decode") == 3 * one_expert + router
    assert moved(sparse, 1, "prefill") - moved(dense, 1, "prefill") == 7 * one_expert + router
    packed = replace(dense, weights="ternary")
    matrices = 3 * 16 * 64 + 16 * 4 * 4
    saved = moved(dense, 1, "decode") - moved(packed, 1, "decode")
    assert saved == 4 * matrices - matrices // 4 - 4 * (64 + 4)  # 2 bits a weight, and two more norms


@settings(max_examples=12)
@given(spaces_with_members(kinds=True), st.sampled_from(["prefill", "decode"]))
def test_modelled_energy_is_never_zero(case, phase):
    space, arch = case
    workload = Workload(1, 8)
    pieces = work(arch, space.base, workload, phase)
    expected = sum(0.75e-12 * (p.flops - p.integers) + 5e-14 * p.integers + 243.75e-12 * p.bytes for p in pieces)
    assert modelled_energy_j(arch, space.base, workload, phase) == pytest.approx(expected, rel=1e-9)
    assert expected > 0
    l4 = gpu("l4")
    on_l4 = modelled_energy_j(arch, space.base, workload, phase, l4)
    assert on_l4 == pytest.approx(72 * roofline_ms(arch, space.base, workload, phase, l4) / 1e3)
    assert on_l4 > 0


def test_models_say_that_they_are_models():
    assert "model" in energy_model(None)
    assert "not a measurement" in energy_model(None)
    for device in GPUS.values():
        assert "model" in energy_model(device)
        assert "NVIDIA" in energy_model(device)


def test_unknown_gpu_is_refused_with_the_names():
    with pytest.raises(UserError, match="'b100' is not known; allowed: this, a100, h100, h200, l4, rtx4090"):
        gpu("b100")
