"""Weights of before linear layers were modules: files that commit bc97187 wrote, and the logits that it computed."""

import contextlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmnas.errors import UserError
from llmnas.export.loading import open_model
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec
from llmnas.supernet import Transformer, fill_weights, load_packed, load_weights, save_weights
from llmnas.supernet.old_names import modern_name

OLD = Path(__file__).parent / "old_layout"
BASE = BaseModel(vocab_size=16, tied=False, qk_norm=True, qkv_bias=True, shared_gate=True, max_seq=16)
LAYERS = (
    LayerSpec(2, 1, 4, 8),
    LayerSpec(1, 2, 4, 8, mixer="mlgru"),
    LayerSpec(1, 1, 4, 8, experts=2, top_k=1, shared_experts=1),
)
SHAPE = FixedShape(BASE, Architecture(8, LAYERS))


def same(model, name):
    """Whether the logits are those that the old code computed, but for the rounding of another processor."""
    told = load_file(OLD / "logits.safetensors")
    with torch.no_grad():
        found = model(told["tokens"])
    return torch.allclose(found if torch.is_tensor(found) else found.logits, told[name], rtol=1e-5, atol=1e-6)


def by_state_dict(model):
    model.load_state_dict(load_file(OLD / "weights.safetensors"))
    return model


def filled(model):
    fill_weights(model, OLD / "weights.safetensors", opened=lambda _: contextlib.nullcontext())
    return model


@pytest.mark.parametrize(
    "read", [lambda model: load_weights(model, OLD / "weights.safetensors"), filled, by_state_dict],
    ids=["whole", "one by one", "state dict"],
)  # fmt: skip
def test_a_file_of_before_gives_the_logits_of_before(read):
    assert same(read(Transformer(SHAPE, seed=None)).eval(), "weights")


def test_it_is_written_again_by_names_of_today(tmp_path):
    model = load_weights(Transformer(SHAPE, seed=None), OLD / "weights.safetensors")
    save_weights(model, tmp_path / "new.safetensors")
    assert same(load_weights(Transformer(SHAPE, seed=None), tmp_path / "new.safetensors").eval(), "weights")
    names = load_file(tmp_path / "new.safetensors").keys()
    assert {"embedding.weight", "layers.0.attention.q.bias", "layers.2.ffn.router.weight"} < names
    assert not any(modern_name(name) != name for name in names)


def test_packed_networks_and_exports_of_before_are_read():
    assert same(load_packed(OLD / "packed.safetensors"), "packed")
    assert same(open_model(OLD / "export"), "export")


@pytest.mark.parametrize("old", [True, False], ids=["before", "today"])
def test_another_grid_of_as_many_heads_is_another_space(old, tmp_path):
    """Two dimensions alone do not say how heads are grouped: 2 x 1 of 4 channels, or 1 x 2."""
    path = OLD / "weights.safetensors"
    if not old:
        path = tmp_path / "new.safetensors"
        save_weights(Transformer(SHAPE), path)
    other = FixedShape(BASE, Architecture(8, (LAYERS[0], LayerSpec(2, 1, 4, 8, mixer="mlgru"), LAYERS[2])))
    with pytest.raises(UserError, match=r"of another search space: layers\.1\.mlgru"):
        load_weights(Transformer(other, seed=None), path)


def test_a_file_without_its_grids_is_checked_by_shapes_alone(tmp_path):
    model = Transformer(SHAPE)
    save_file(model.state_dict(), tmp_path / "bare.safetensors")
    again = load_weights(Transformer(SHAPE, seed=None), tmp_path / "bare.safetensors")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
