"""Memory against bytes of real tensors: weights, a real KV cache, and the measured peak of a block."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import scrambled, spaces_with_members
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from llmnas.cost import Memory, Workload, memory
from llmnas.nn.block import Block
from llmnas.nn.rope import frequencies, rotations
from llmnas.space import Architecture, BaseModel, FixedShape, LayerKinds, LayerSpec
from llmnas.supernet import Transformer, extract, pack
from llmnas.triton_kernels import reference

FP32 = Workload(bytes_per_value=4)


class LiveStorages(TorchDispatchMode):
    """Follows the bytes of every storage that an operation returns, until it is freed."""

    def __init__(self, *known):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.live = WeakIdKeyDictionary()
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().data_ptr() not in self.known:
                self.live[leaf.untyped_storage()] = leaf.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(self.live.values()))
        return result


def measured_peak(base, hidden_size, spec, batch, seq):
    """Most bytes alive in a block's forward without gradients, its input included."""
    block = Block(base, hidden_size, spec, LayerKinds())
    x = torch.randn(batch, seq, hidden_size)
    rotation = rotations(frequencies(spec.head_dim, 1e4, "leading"), seq, x.device)
    with torch.no_grad(), LiveStorages(x, rotation, *block.parameters()) as storages:
        block(x, spec, rotation, None)
    return x.nbytes + storages.peak


def test_the_meter_counts_what_is_alive_and_no_more():
    x = torch.ones(1000)
    with torch.no_grad(), LiveStorages(x) as storages:
        y = x + 1  # 4,000 bytes
        z = y * y  # 8,000
        del y
        z = z + 1  # 8,000 for a moment
        z = z.view(10, 100)[:5] + 1  # 2,000 more than one copy
    assert storages.peak == 8000
    assert sum(storages.live.values()) == z.nbytes == 2000


@pytest.mark.parametrize(
    ("hidden_size", "spec"),
    [
        (64, LayerSpec(2, 2, 16, 176)),
        (64, LayerSpec(4, 1, 16, 64)),
        (32, LayerSpec(1, 8, 16, 16)),
        (64, LayerSpec(1, 1, 16, 512)),
        (128, LayerSpec(1, 2, 8, 16)),
        (64, LayerSpec(1, 1, 16, 256, experts=8, top_k=2)),
        (64, LayerSpec(1, 1, 16, 128, experts=4, top_k=1, shared_experts=2)),
    ],
    ids=["usual", "heads without groups", "wide attention", "wide ffn", "wide residual", "experts", "shared experts"],
)
def test_activations_are_within_a_factor_of_the_measured_peak(hidden_size, spec):
    """The closed form is a lower bound: temporaries of RoPE, SDPA and the branch's output come on top, up to 2x."""
    base = BaseModel(vocab_size=8, max_seq=64)
    claimed = memory(Architecture(hidden_size, (spec,)), base, Workload(2, 64, 4)).activations
    assert claimed <= measured_peak(base, hidden_size, spec, 2, 64) <= 2 * claimed


@given(spaces_with_members(max_layers=3))
@settings(max_examples=25)
def test_weights_are_the_bytes_of_the_module(case):
    space, arch = case
    small = extract(scrambled(space), arch)
    assert memory(arch, space.base, FP32).weights == sum(p.nbytes for p in small.parameters())
    assert memory(arch, space.base).weights == sum(p.nbytes for p in small.bfloat16().parameters())


@pytest.mark.parametrize("shared", [0, 1])
def test_all_experts_are_stored_and_those_in_use_hold_activations(shared):
    base, bytes_of = BaseModel(vocab_size=8, max_seq=64), {}
    for experts, top_k in ((4, 1), (4, 2), (8, 2)):
        spec = LayerSpec(1, 1, 16, 128, experts=experts, top_k=top_k, shared_experts=shared)
        arch = Architecture(64, (spec, LayerSpec(1, 1, 16, 128)))
        found = memory(arch, base, FP32)
        assert found.weights == sum(p.nbytes for p in Transformer(FixedShape(base, arch)).parameters())
        bytes_of[experts, top_k] = found
    few, more, many = bytes_of.values()
    assert few.weights == more.weights == many.weights - 4 * 4 * (3 * 64 * 128 + 64)
    assert more.activations == many.activations == few.activations + 4 * 64 * 3 * 128


@pytest.mark.parametrize(("kind", "dtype"), [("ternary", torch.uint8), ("binary", torch.int32)])
def test_low_bit_weights_are_the_bytes_of_the_packed_module(kind, dtype):
    """Scales, one number a matrix or an output, are left out."""
    layers = (LayerSpec(2, 2, 32, 192, weights=kind), LayerSpec(1, 2, 64, 64, weights=kind, mixer="mlgru"))
    shape = FixedShape(BaseModel(32), Architecture(128, (*layers, LayerSpec(1, 1, 8, 20))))
    found = pack(Transformer(shape)).state_dict()
    stored = {name: value for name, value in found.items() if not name.endswith("_scale")}
    assert memory(shape.envelope, shape.base, FP32).weights == sum(value.nbytes for value in stored.values())
    assert {value.dtype for value in stored.values()} == {torch.float32, dtype}


def test_five_ternary_weights_in_a_byte():
    """1.6 bits, where rows are whole groups of 80 as the base-3 packing makes them."""
    spec = LayerSpec(5, 1, 16, 160, weights="ternary")
    arch, base, matrices = Architecture(80, (spec,)), BaseModel(32), [(80, 80)] * 4 + [(160, 80)] * 2 + [(80, 160)]
    two, five = (memory(arch, base, replace(FP32, ternary_bits=bits)).weights for bits in (2, 1.6))
    packed = sum(reference.pack3(torch.zeros(shape, dtype=torch.int8)).nbytes for shape in matrices)
    assert two - five == sum(n * k // 4 for n, k in matrices) - packed
    with pytest.raises(ValueError, match=r"ternary_bits must be 2 or 1.6, got 3"):
        Workload(ternary_bits=3)


@pytest.mark.parametrize(("batch", "context"), [(1, 1), (3, 7)])
def test_kv_cache_is_what_transformers_stores(batch, context):
    spec = LayerSpec(kv_heads=2, queries_per_group=3, head_dim=4, ffn_size=8)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=24,
        intermediate_size=8,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=4,
    )
    cache = DynamicCache()
    LlamaForCausalLM(config)(torch.zeros(batch, context, dtype=torch.long), past_key_values=cache)
    stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    arch = Architecture(24, (spec, None, spec, spec))
    assert memory(arch, BaseModel(16), Workload(batch, context, 4)).kv_cache == stored


@given(spaces_with_members(), st.integers(1, 4), st.integers(1, 64), st.sampled_from([2, 4]))
def test_kv_cache_of_mixed_layers_is_a_key_and_a_value_a_head(case, batch, context, width):
    space, arch = case
    shapes = [(batch, spec.kv_heads, context, spec.head_dim) for _, spec in arch.kept]
    dtype = {2: torch.bfloat16, 4: torch.float32}[width]
    stored = sum(2 * torch.empty(shape, dtype=dtype, device="meta").nbytes for shape in shapes)
    assert memory(arch, space.base, Workload(batch, context, width)).kv_cache == stored


def test_the_context_is_the_longest_sequence_unless_given():
    base = BaseModel(vocab_size=16, max_seq=50)
    arch = Architecture(8, (LayerSpec(1, 1, 4, 8),))
    assert memory(arch, base) == memory(arch, base, Workload(context=50)) != memory(arch, base, Workload(context=49))


def test_logits_dominate_where_the_vocabulary_is_large():
    arch = Architecture(8, (LayerSpec(1, 1, 4, 8),))
    found = memory(arch, BaseModel(vocab_size=100_000), Workload(batch=3, context=2, bytes_per_value=4))
    assert found.activations == 3 * 100_000 * 4


def test_total_is_the_sum():
    assert Memory(1, 20, 300).total == 321
