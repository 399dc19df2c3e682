"""With all the weight on one choice, the mixture is that network; in between it is what its equations say."""

from dataclasses import replace

import pytest
import strategies
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmnas.errors import UserError
from llmnas.nn.rope import frequencies, rotations
from llmnas.nn.soft import leading_mask, soft_block, soft_rms_norm
from llmnas.rng import generator
from llmnas.space import SearchSpace
from llmnas.supernet import Transformer
from llmnas.supernet.mixture import Mixture, choices_of, decisions, first_alphas, free_layers, rows_of, soften

SURE = 200.0  # exp(-200) is 0 in float32


def alphas_of(space, arch):
    """Logits that leave no doubt about `arch`; what it does not use keeps its first choice."""
    alphas = {}
    for name in decisions(space):
        alpha = torch.zeros(rows_of(space, name), len(choices_of(space, name)))
        for row in range(len(alpha)):
            alpha[row, place(space, arch, name, row)] = SURE
        alphas[name] = alpha
    return alphas


def place(space, arch, name, row):
    choices = choices_of(space, name)
    if name == "hidden_size":
        return choices.index(arch.hidden_size)
    if name == "depth" and space.depth.policy == "even":
        return choices.index(arch.depth)
    if name == "depth":
        return int(arch.layers[free_layers(space)[row]] is not None)
    layers = [arch.layers[row]] if rows_of(space, name) > 1 else [spec for _, spec in arch.kept]
    used = [getattr(spec, name) for spec in layers if spec and spec.uses(name)]
    return choices.index(used[0]) if used else 0


@st.composite
def mixable_spaces(draw):
    space = draw(strategies.spaces(kinds=True))
    values = space.model_dump()
    values |= {"experts": 1, "top_k": 1, "shared_experts": 0}
    values["weights"]["choices"] = draw(st.sampled_from([["dense"], ["ternary"], ["ternary", "dense"]]))
    return SearchSpace.from_dict(values)


@given(mixable_spaces(), st.integers(0, 99))
@settings(max_examples=60)
def test_all_weight_on_one_choice_is_that_network(space, seed):
    if not decisions(space):
        with pytest.raises(UserError, match="one choice only"):
            first_alphas(space, 0)
        return
    model = strategies.scrambled(space)
    arch = space.sample(generator(seed, "test"))
    tokens = torch.from_numpy(generator(seed, "tokens").integers(space.base.vocab_size, size=(2, 9)))
    soft = soften(space, alphas_of(space, arch), model)
    found = Mixture(model)(tokens[:, :-1], soft, targets=tokens[:, 1:]).loss
    asked = model(tokens[:, :-1], arch, targets=tokens[:, 1:]).loss
    # a ternary layer may round an activation the other way: one code in 127
    torch.testing.assert_close(found, asked, rtol=1e-4, atol=1e-4 if space.weights.choices == ("dense",) else 5e-3)


@pytest.fixture(scope="module")
def space():
    return SearchSpace.from_dict(
        {
            "base": {"vocab_size": 40, "max_seq": 32, "qk_norm": True},
            "layers": 3,
            "hidden_size": [8, 16],
            "depth": {"choices": [2, 3]},
            "kv_heads": {"choices": [1, 2], "per_layer": True},
            "queries_per_group": [1, 2],
            "head_dim": [4, 8],
            "ffn_size": {"choices": [8, 24], "per_layer": True},
            "mixer": {"choices": ["none", "mlgru", "attention"], "per_layer": True},
            "weights": ["ternary", "dense"],
        }
    )


def test_mask_is_the_weight_of_the_sizes_that_contain_a_channel():
    weights = torch.tensor([0.2, 0.5, 0.3])
    torch.testing.assert_close(leading_mask(weights, (1, 3, 4), 5), torch.tensor([1.0, 0.8, 0.8, 0.3, 0.0]))


def test_norm_of_a_hard_mask_is_the_norm_of_the_slice():
    x, gain = torch.randn(3, 6, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    mask = torch.tensor([1.0, 1, 1, 1, 0, 0], dtype=torch.float64)
    found = soft_rms_norm(x, gain, mask, 1e-5)
    expected = torch.nn.functional.rms_norm(x[:, :4], (4,), gain[:4], 1e-5)
    torch.testing.assert_close(found[:, :4], expected)
    assert not found[:, 4:].any()


def test_scores_are_the_mixture_of_every_head_dim(space):
    alphas = {name: torch.randn_like(alpha) for name, alpha in first_alphas(space, 0).items()}
    model = Transformer(space)
    layer = soften(space, alphas, model).layers[0]
    q, k = torch.randn(8), torch.randn(8)
    shares = alphas["head_dim"][0].softmax(-1)
    expected = sum(w * (q[:d] @ k[:d]) / d**0.5 for w, d in zip(shares, (4, 8), strict=True))
    torch.testing.assert_close((q * layer.scores) @ k, expected)


def test_a_layer_is_as_much_there_as_it_is_kept(space):
    """x + keep (block(x) - x): the loss of the mixture is affine in one layer's output only through `keep`."""
    alphas = {name: torch.randn_like(alpha) for name, alpha in first_alphas(space, 0).items()}
    model = strategies.scrambled(space)
    soft = soften(space, alphas, model)
    x = torch.randn(2, 5, 16)
    rotation = rotations(frequencies(model.rope_dim, 1e4, "leading"), 5, x.device)
    whole = soft_block(model.layers[0], x, replace(soft.layers[0], keep=torch.tensor(1.0)), soft.hidden, rotation)
    part = soft_block(model.layers[0], x, soft.layers[0], soft.hidden, rotation)
    keep = alphas["depth"][0].softmax(-1)[1]
    torch.testing.assert_close(part, torch.lerp(x, whole, keep))


def test_every_decision_gets_a_gradient(space):
    alphas = first_alphas(space, 0)
    model = strategies.scrambled(space)
    tokens = strategies.random_tokens(space.base, 2, 9)
    Mixture(model)(tokens[:, :-1], soften(space, alphas, model), targets=tokens[:, 1:]).loss.backward()
    assert set(alphas) == {
        "hidden_size", "depth", "kv_heads", "queries_per_group", "head_dim", "ffn_size", "mixer", "weights",
    }  # fmt: skip
    for name, alpha in alphas.items():
        assert alpha.grad.isfinite().all(), name
        assert (alpha.grad != 0).all(), name
        torch.testing.assert_close(alpha.grad.sum(-1), torch.zeros(len(alpha)), atol=1e-5, rtol=0)  # of a softmax


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"experts": [1, 2]}, "experts cannot be mixed"),
        ({"weights": ["binary", "dense"]}, "allowed in space.weights: dense, ternary"),
    ],
)
def test_what_cannot_be_mixed_is_refused(space, change, complaint):
    with pytest.raises(UserError, match=complaint):
        first_alphas(SearchSpace.from_dict({**space.model_dump(), **change}), 0)
