"""Networks at 2 bits a weight: equal logits, in pieces too, stored and read without quantising again."""

import json
import struct
from dataclasses import replace

import pytest
import torch
from strategies import random_tokens, scrambled

from llmnas.errors import UserError
from llmnas.nn.ternary import codes
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec, SearchSpace
from llmnas.supernet import Transformer, extract, load_packed, pack, packable, save_packed, unpack
from llmnas.triton_kernels import reference

BASE = BaseModel(vocab_size=64, max_seq=32, qk_norm=True, qkv_bias=True)
MLGRU = LayerSpec(2, 1, 32, 128, weights="ternary", mixer="mlgru")
ATTENTION = replace(MLGRU, mixer="attention", queries_per_group=2)
ALL_TERNARY = Architecture(64, (MLGRU, ATTENTION, MLGRU, replace(MLGRU, mixer="none")))
BINARY = replace(ATTENTION, weights="binary")
MIXED = Architecture(64, (MLGRU, LayerSpec(1, 1, 8, 20), BINARY, ATTENTION))
EXPERTS = Architecture(
    64,
    (
        replace(MLGRU, experts=4, top_k=2, shared_experts=1),
        replace(BINARY, experts=3, ffn_size=64),
        LayerSpec(1, 1, 8, 20, experts=2),
    ),
)
CUT = Architecture(  # the inputs of some weights are no whole groups
    64,
    (
        replace(ATTENTION, ffn_size=100),
        replace(BINARY, head_dim=20, ffn_size=48),
        replace(MLGRU, mixer="none", experts=2, ffn_size=96),
    ),
)
ALL_BINARY = Architecture(64, (BINARY, replace(MLGRU, weights="binary", ffn_size=96), BINARY))


def network(arch=ALL_TERNARY):
    return scrambled(FixedShape(BASE, arch), seed=2).eval()


@pytest.mark.parametrize("arch", [ALL_TERNARY, MIXED, ALL_BINARY, EXPERTS])
def test_packed_logits_are_those_of_the_network(arch):
    model, tokens = network(arch), random_tokens(BASE, 3, 20)
    with torch.no_grad():
        assert torch.equal(pack(model)(tokens), model(tokens))


@pytest.mark.parametrize("arch", [ALL_TERNARY, ALL_BINARY])
@pytest.mark.parametrize("pieces", [[1] * 12, [5, 1, 6], [11, 1]])
def test_chunks_and_single_steps_are_the_whole(pieces, arch):
    """A step of few tokens and a long prefix take other loops, of the same integers."""
    model, tokens = pack(network(arch)), random_tokens(BASE, 2, 12)
    cache = model.new_cache(model.envelope, 2, 12)
    with torch.no_grad():
        whole = model(tokens)
        parts = [model(part, cache=cache) for part in tokens.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)


def test_a_network_cut_out_of_a_supernet_keeps_the_supernets_codes():
    space = SearchSpace.from_dict({
        "base": {"vocab_size": 64, "max_seq": 32}, "layers": 2, "hidden_size": [64, 128], "depth": [1, 2],
        "kv_heads": [2, 4], "queries_per_group": 1, "head_dim": 32, "ffn_size": [64, 192],
        "weights": ["ternary", "dense"], "mixer": ["mlgru", "attention"],
    })  # fmt: skip
    supernet, tokens = scrambled(space).eval(), random_tokens(BASE, 2, 9)
    arch = Architecture(64, (LayerSpec(2, 1, 32, 64, weights="ternary", mixer="mlgru"), None))
    small = pack(extract(supernet, arch))
    with torch.no_grad():
        assert torch.equal(small(tokens), extract(supernet, arch)(tokens))
    layer = supernet.layers[0].ffn
    whole = codes(layer.gate.weight.detach(), layer.gate.scale("ternary"), "ternary")
    assert torch.equal(reference.unpack2(small.layers[0].ffn.gate.weight).float(), whole[:64, :64])


def test_every_expert_keeps_its_own_scale_and_one_without_tokens_is_not_read():
    model = network(EXPERTS)
    ffn = model.layers[0].ffn
    with torch.no_grad():
        ffn.gate.weight *= torch.tensor([1.0, 10, 0.1, 3])[:, None, None]
        ffn.balance[2] = -9
    small = pack(model)
    assert small.layers[0].ffn.gate.weight.shape == (4 * 128, 64 // 4)
    scales = small.layers[0].ffn.gate.ternary_scale.flatten()
    torch.testing.assert_close(scales, ffn.gate.weight.detach().abs().mean((1, 2)))
    small.layers[0].ffn.gate.ternary_scale[2] = torch.nan  # would be seen
    tokens = random_tokens(BASE, 1, 1)
    with torch.no_grad():
        assert torch.equal(small(tokens), model(tokens))
        with pytest.raises(ValueError, match=r"^\[4, 128, 64\] ternary weights are packed, \[2, 128, 64\] ternary"):
            small(tokens, replace(EXPERTS, layers=(replace(EXPERTS.layers[0], experts=2), *EXPERTS.layers[1:])))


def test_two_bits_are_two_bits_in_memory_and_in_the_file(tmp_path):
    model = network()
    small = pack(model)
    packed = [value for value in small.state_dict().values() if value.dtype == torch.uint8]
    latent = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if name.startswith("layers") and parameter.dim() > 1 and not name.endswith(("norm", "bias", "lower"))
    )
    assert sum(value.nbytes for value in packed) * 4 == latent
    rest = sum(value.nbytes for value in small.state_dict().values()) - latent // 4
    save_packed(small, tmp_path / "small.safetensors")
    assert (tmp_path / "small.safetensors").stat().st_size < latent // 4 + rest + 10_000


def test_one_bit_is_one_bit_in_memory():
    small = pack(network(ALL_BINARY))
    latent = sum(
        parameter.numel()
        for name, parameter in network(ALL_BINARY).named_parameters()
        if name.startswith("layers") and parameter.dim() > 1 and not name.endswith(("norm", "bias", "lower"))
    )
    assert sum(value.nbytes for value in small.state_dict().values() if value.dtype == torch.int32) * 8 == latent


@pytest.mark.parametrize("arch", [MIXED, ALL_BINARY, EXPERTS])
def test_stored_and_read_again_bit_for_bit(tmp_path, arch):
    small, tokens = pack(network(arch)), random_tokens(BASE, 2, 9)
    save_packed(small, tmp_path / "a")
    again = load_packed(tmp_path / "a")
    assert again.base == small.base
    assert again.envelope == small.envelope
    for name, value in small.state_dict().items():
        assert torch.equal(again.state_dict()[name].view(torch.uint8), value.contiguous().view(torch.uint8)), name
    with torch.no_grad():
        assert torch.equal(again(tokens), small(tokens))


def test_what_is_packed_and_what_is_refused():
    assert packable(network())
    assert packable(network(ALL_BINARY))
    assert packable(network(EXPERTS))
    dense = network(Architecture(64, (LayerSpec(1, 1, 8, 20),)))
    thin = network(Architecture(48, (LayerSpec(1, 1, 8, 20, weights="ternary"),)))
    for model in (dense, thin):
        assert not packable(model)
        with pytest.raises(ValueError, match="no weight of this network can be packed: that takes inputs in multiples"):
            pack(model)
    space = SearchSpace.from_dict({
        "base": {"vocab_size": 64}, "layers": 1, "hidden_size": 64, "depth": 1, "kv_heads": 1, "queries_per_group": 1,
        "head_dim": 64, "ffn_size": 64, "weights": ["ternary", "dense"],
    })  # fmt: skip
    assert not packable(Transformer(space))
    with pytest.raises(ValueError, match="layer 0 holds several kinds"):
        pack(Transformer(space))
    assert not packable(pack(network()))
    with pytest.raises(ValueError, match="packed already"):
        pack(pack(network()))


def test_weights_whose_inputs_cut_a_group_stay_as_they_are(tmp_path):
    model, tokens = network(CUT), random_tokens(BASE, 2, 9)
    small = pack(model)
    kinds = [value.dtype for value in small.layers.state_dict().values() if not value.is_floating_point()]
    assert sorted(map(str, kinds)) == ["torch.int32"] * 5 + ["torch.uint8"] * 8
    assert small.layers[0].ffn.down.weight.data_ptr() == model.layers[0].ffn.down.weight.data_ptr()
    save_packed(small, tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(small(tokens), model(tokens))
        assert torch.equal(load_packed(tmp_path / "small")(tokens), model(tokens))


@pytest.mark.parametrize("arch", [MIXED, EXPERTS, CUT])
def test_unpacked_it_is_a_network_to_train_with_the_same_codes(arch):
    small, tokens = pack(network(arch)), random_tokens(BASE, 2, 9)
    plain = unpack(small)
    with torch.no_grad():
        assert torch.equal(plain(tokens), small(tokens))
    assert plain.state_dict().keys() == small.state_dict().keys()
    again = pack(plain).state_dict()
    for name, value in small.state_dict().items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=0, equal_nan=True)
    plain(tokens, targets=tokens).loss.backward()
    assert plain.layers[0].ffn.gate.weight.grad.abs().sum() > 0
    with torch.no_grad():
        plain.embedding.weight.zero_()
    assert small.embedding.weight.abs().sum() > 0


def test_a_packed_weight_is_used_whole():
    small = pack(network(Architecture(64, (MLGRU, MLGRU))))
    tokens = random_tokens(BASE, 1, 4)
    with torch.no_grad():
        small(tokens, Architecture(64, (MLGRU, None)))  # layers may be left out
        with pytest.raises(ValueError, match=r"^\[128, 64\] ternary weights are packed, \[64, 64\] ternary ones"):
            small(tokens, Architecture(64, (replace(MLGRU, ffn_size=64), MLGRU)))
        with pytest.raises(ValueError, match="no weights for dense weights"):
            small(tokens, Architecture(64, (replace(MLGRU, weights="dense"), MLGRU)))


def damaged(path, change):
    """The file with its header changed."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header["__metadata__"].update(format="other"), "format 'other', must be"),
        (lambda header: header["__metadata__"].update(architecture="{}"), "description of the network is damaged"),
        (lambda header: header["__metadata__"].update(base='{"vocab_size": 65}'), r"embedding.weight is \[64, 64\]"),
        (lambda header: header.update(extra=header.pop("norm")), "norm is missing"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, change, message):
    path = tmp_path / "small.safetensors"
    save_packed(pack(network()), path)
    damaged(path, change)
    with pytest.raises(UserError, match=message) as error:
        load_packed(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_codes_and_no_file_are_refused(tmp_path):
    small, path = pack(network()), tmp_path / "small.safetensors"
    with pytest.raises(UserError, match="no such file"):
        load_packed(path)
    small.layers[0].ffn.gate.weight[3, 5] = 0b11
    save_packed(small, path)
    with pytest.raises(UserError, match=r"layers.0.ffn.gate.weight: packed: row 3, byte 5 holds code 3, must be 0"):
        load_packed(path)
    small.layers[0].ffn.gate.weight[3, 5] = 0
    small.layers[1].ffn.up.ternary_scale.fill_(torch.nan)
    save_packed(small, path)
    with pytest.raises(UserError, match=r"layers.1.ffn.up.ternary_scale: holds nan, must hold positive numbers"):
        load_packed(path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match="damaged weights"):
        load_packed(path)
