"""Initial weights have the variance that the docstring promises, in the supernet and in what is cut out of it."""

import pytest
import torch

from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec, SearchSpace
from llmnas.supernet import Transformer
from llmnas.supernet.init import initialise

HIDDEN, DEPTH, FFN = 96, 3, 160
SPEC = LayerSpec(kv_heads=2, queries_per_group=3, head_dim=16, ffn_size=FFN)
BASE = BaseModel(vocab_size=300, tied=False, qk_norm=True, qkv_bias=True)
SHAPE = FixedShape(BASE, Architecture(HIDDEN, (SPEC,) * DEPTH))
STD = {
    "embedding": 0.02,
    "head": 0.02,
    "q": HIDDEN**-0.5,
    "k": HIDDEN**-0.5,
    "v": HIDDEN**-0.5,
    "gate": HIDDEN**-0.5,
    "up": HIDDEN**-0.5,
    "o": 0.02 * (2 * DEPTH * 6 * 16) ** -0.5,
    "down": 0.02 * (2 * DEPTH * FFN) ** -0.5,
}


@pytest.fixture(scope="module")
def model():
    return Transformer(SHAPE, seed=3)


def matrices(model):
    named = [(name.removesuffix(".weight"), p) for name, p in model.named_parameters() if p.numel() > 1000]
    return [(name.rsplit(".", 1)[-1], p.detach()) for name, p in named]


def test_matrices_are_normal_with_the_stated_deviation(model):
    assert {kind for kind, _ in matrices(model)} == set(STD)
    for kind, weight in matrices(model):
        n, std = weight.numel(), STD[kind]
        assert abs(weight.mean()) < 5 * std / n**0.5, kind
        assert abs(weight.std() / std - 1) < 5 / (2 * n) ** 0.5, kind
        assert abs((weight / std).pow(4).mean() - 3) < 5 * (96 / n) ** 0.5, kind


def test_gains_are_one_and_biases_zero(model):
    for name, parameter in model.named_parameters():
        if name.endswith("norm"):
            assert (parameter == 1).all()
        if name.endswith("bias"):
            assert (parameter == 0).all()
    kinds = {name.replace("layers.0.", "").replace("attention.", "") for name, _ in model.named_parameters()}
    assert {k for k in kinds if k.endswith(("norm", "bias")) and not k.startswith("layers")} == {
        "norm",
        "mixer_norm",
        "ffn_norm",
        "q_norm",
        "k_norm",
        "q.bias",
        "k.bias",
        "v.bias",
    }


def test_no_two_matrices_are_alike(model):
    starts = {tuple(weight.flatten()[:4].div(weight.std()).tolist()) for _, weight in matrices(model)}
    assert len(starts) == len(matrices(model))


def test_everything_is_written_whatever_was_there():
    model = Transformer(SHAPE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    initialise(model, DEPTH, seed=3)
    expected = Transformer(SHAPE, seed=3).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_the_embedding_deviation_is_a_knob():
    model = Transformer(SHAPE)
    initialise(model, DEPTH, seed=3, embedding_std=0.5)
    assert model.embedding.weight.std().item() == pytest.approx(0.5, rel=0.03)


def test_a_fresh_network_knows_nothing(model):
    """Small logits: the first loss is that of a uniform guess, log V."""
    tokens = torch.randint(300, (4, 32), generator=torch.Generator().manual_seed(0))
    loss = model(tokens, targets=tokens.roll(-1, 1)).loss
    assert loss.item() == pytest.approx(torch.log(torch.tensor(300.0)).item(), rel=0.02)


@pytest.mark.parametrize("depth", [2, 16])
def test_all_branches_together_add_about_what_the_embedding_has(depth):
    """Neither drowns the other, however many layers there are."""
    model = Transformer(FixedShape(BASE, Architecture(HIDDEN, (SPEC,) * depth)), seed=1)
    grown = []
    model.layers[-1].register_forward_hook(lambda _module, _inputs, output: grown.append(output[0].std().item()))
    model(torch.randint(300, (2, 32), generator=torch.Generator().manual_seed(0)))
    assert 1.02 < grown[0] / 0.02 < 2


def test_matrices_that_may_be_low_bit_keep_their_size():
    space = SearchSpace.model_validate(
        {
            "base": {"vocab_size": 300},
            "layers": 2,
            "hidden_size": HIDDEN,
            "depth": 2,
            "kv_heads": 2,
            "queries_per_group": 3,
            "head_dim": 16,
            "ffn_size": FFN,
            "weights": {"choices": ["dense", "ternary"], "per_layer": True},
        }
    )
    model = Transformer(space, seed=3)
    assert model.layers[1].ffn.down.weight.std().item() == pytest.approx((2 * 2 * FFN) ** -0.5, rel=0.05)
    assert model.layers[1].attention.o.weight.std().item() == pytest.approx((2 * 2 * 6 * 16) ** -0.5, rel=0.05)
