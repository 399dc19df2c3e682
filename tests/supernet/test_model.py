"""The transformer: causal, without state, and blind to everything but its arguments."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from grids import sliced
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import random_tokens, scrambled, spaces, spaces_with_members

from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec, SearchSpace
from llmnas.supernet import Losses, Teacher, Transformer

SPACE = SearchSpace.from_dict(
    {
        "base": {"vocab_size": 32, "qk_norm": True, "qkv_bias": True, "tied": False, "rope_order": "spread"},
        "layers": 3,
        "hidden_size": [8, 12],
        "depth": [1, 2, 3],
        "kv_heads": {"choices": [1, 2], "per_layer": True},
        "queries_per_group": {"choices": [1, 3], "per_layer": True},
        "head_dim": {"choices": [2, 4, 8], "per_layer": True},
        "ffn_size": {"choices": [5, 16], "per_layer": True},
    }
)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def sample(seed):
    return SPACE.sample(np.random.default_rng(seed))


def by_hand(model, tokens):
    """The whole network in float64, one head at a time, from the stored weights and nothing of llmnas.nn."""
    weights = {name: p.double() for name, p in sliced(model).items()}
    eps, theta, dim_of_theta = model.base.norm_eps, model.base.rope_theta, model.rope_dim

    def norm(x, gain):
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * gain

    def turn(x):
        seq, dim = x.shape
        angle = torch.outer(torch.arange(seq).double(), theta ** (-torch.arange(0, dim, 2).double() / dim_of_theta))
        even, odd = x[:, 0::2], x[:, 1::2]
        pairs = (even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos())
        return torch.stack(pairs, -1).reshape(seq, dim)

    def part(i, name, *index):
        return weights[f"layers.{i}.{name}"][index]

    def projected(i, h, name, *index):
        y = h @ part(i, f"attention.{name}.weight", *index).T
        if model.base.qkv_bias:
            y = y + part(i, f"attention.{name}.bias", *index)
        if model.base.qk_norm and name != "v":
            y = norm(y, part(i, f"attention.{name}_norm"))
        return y if name == "v" else turn(y)

    rows = []
    for row in tokens:
        x = weights["embedding.weight"][row]
        future = torch.ones(len(row), len(row)).triu(1).bool()
        for i, (_, spec) in enumerate(model.envelope.kept):
            h, update = norm(x, part(i, "mixer_norm")), 0
            for g in range(spec.kv_heads):
                k, v = projected(i, h, "k", g), projected(i, h, "v", g)
                for j in range(spec.queries_per_group):
                    scores = projected(i, h, "q", g, j) @ k.T / spec.head_dim**0.5
                    mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
                    update = update + mixed @ part(i, "attention.o.weight", slice(None), g, j).T
            x = x + update
            h = norm(x, part(i, "ffn_norm"))
            gate, up = h @ part(i, "ffn.gate.weight").T, h @ part(i, "ffn.up.weight").T
            x = x + (gate * gate.sigmoid() * up) @ part(i, "ffn.down.weight").T
        rows.append(norm(x, weights["norm"]) @ weights["embedding.weight" if model.base.tied else "head.weight"].T)
    return torch.stack(rows)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("extras", [True, False], ids=["qk norm and biases", "plain"])
def test_it_is_the_llama_family_written_by_hand(tied, extras):
    base = BaseModel(vocab_size=20, tied=tied, qk_norm=extras, qkv_bias=extras, rope_theta=500.0, rope_dim=8)
    layers = (LayerSpec(2, 3, 4, 10), LayerSpec(1, 1, 8, 7), LayerSpec(3, 2, 2, 16))
    model = scrambled(FixedShape(base, Architecture(12, layers)))
    tokens = random_tokens(base, 2, 7)
    torch.testing.assert_close(model(tokens).double(), by_hand(model, tokens), **CLOSE)


@given(spaces_with_members(), st.integers(1, 7), st.integers(0, 1000))
@settings(max_examples=40)
def test_a_future_token_changes_no_earlier_logit(case, changed, seed):
    space, arch = case
    model, tokens = scrambled(space, seed), random_tokens(space.base, 1, 8, seed)
    other = tokens.clone()
    other[0, changed] = (other[0, changed] + 1) % space.base.vocab_size
    before, after = model(tokens, arch), model(other, arch)
    torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=0, atol=1e-6)
    assert not torch.allclose(after[:, changed:], before[:, changed:], rtol=1e-3, atol=1e-3)


@given(spaces_with_members(), st.integers(0, 1000))
@settings(max_examples=30)
def test_rows_of_a_batch_do_not_see_each_other(case, seed):
    space, arch = case
    model, tokens = scrambled(space, seed), random_tokens(space.base, 3, 6, seed)
    alone = torch.cat([model(row[None], arch) for row in tokens])
    torch.testing.assert_close(model(tokens, arch), alone, **CLOSE)


@given(spaces_with_members(), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 1000))
@settings(max_examples=40)
def test_a_packed_row_equals_its_documents_alone(case, lengths, seed):
    space, arch = case
    model = scrambled(space, seed)
    texts = [random_tokens(space.base, 1, length, seed + i) for i, length in enumerate(lengths)]
    documents = torch.cat([torch.full_like(text, i) for i, text in enumerate(texts)], 1)
    packed = model(torch.cat(texts, 1), arch, documents=documents)
    torch.testing.assert_close(packed, torch.cat([model(text, arch) for text in texts], 1), **CLOSE)


def test_rows_may_be_packed_differently():
    model, arch = scrambled(SPACE), sample(0)
    tokens = random_tokens(SPACE.base, 2, 6)
    documents = torch.tensor([[0, 0, 1, 1, 1, 2], [5, 5, 5, 5, 5, 5]])
    found = model(tokens, arch, documents=documents)
    torch.testing.assert_close(found[1:], model(tokens[1:], arch), **CLOSE)
    torch.testing.assert_close(found[:1, 2:5], model(tokens[:1, 2:5], arch), **CLOSE)


@given(spaces_with_members(members=2), st.integers(0, 1000))
@settings(max_examples=20)
def test_no_state_is_left_between_architectures(case, seed):
    """Gradients of two interleaved networks are those that each gives alone, and the weights stay as they were."""
    space, a, b = case
    model, tokens = scrambled(space, seed), random_tokens(space.base, 1, 5, seed)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def alone(arch):
        fresh = scrambled(space, seed)
        loss = fresh(tokens, arch, targets=tokens).loss
        return loss, torch.autograd.grad(loss, list(fresh.parameters()), allow_unused=True)

    first, second = model(tokens, a, targets=tokens).loss, model(tokens, b, targets=tokens).loss
    again = model(tokens, a, targets=tokens).loss
    for loss, arch in ((again, a), (second, b), (first, a)):
        expected, gradients = alone(arch)
        assert torch.equal(loss, expected)
        found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        for x, y in zip(found, gradients, strict=True):
            assert (x is None and y is None) or torch.equal(x, y)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_none_is_the_largest_and_all_sizes_of_it():
    model, tokens = scrambled(SPACE), random_tokens(SPACE.base, 2, 5)
    assert torch.equal(model(tokens), model(tokens, SPACE.envelope))
    assert torch.equal(model(tokens), model(tokens, SPACE.largest()))
    assert model(tokens).shape == (2, 5, 32)


@pytest.mark.parametrize("seed", range(5))
def test_losses_are_those_of_the_logits(seed):
    model, arch, tokens = scrambled(SPACE), sample(seed), random_tokens(SPACE.base, 2, 6, seed)
    targets = random_tokens(SPACE.base, 2, 6, seed + 1)
    logits = model(tokens, arch)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    result = model(tokens, arch, targets=targets)
    assert isinstance(result, Losses)
    torch.testing.assert_close(result.loss, expected, **CLOSE)

    largest = model(tokens, targets=targets, emit_teacher=32)
    assert isinstance(largest.teacher, Teacher)
    student = model(tokens, arch, targets=targets, teacher=largest.teacher, teacher_weight=0.25)
    own = model(tokens).detach().flatten(0, 1).log_softmax(-1)
    divergence = F.kl_div(logits.flatten(0, 1).log_softmax(-1), own, log_target=True, reduction="batchmean")
    mixed = 0.75 * expected + 0.25 * divergence
    torch.testing.assert_close(student.loss, mixed, **CLOSE)
    torch.testing.assert_close(student.cross_entropy, expected, **CLOSE)
    found, wanted = (torch.autograd.grad(x, model.parameters(), allow_unused=True) for x in (student.loss, mixed))
    for x, y in zip(found, wanted, strict=True):
        assert (x is None and y is None) or torch.allclose(x, y, **CLOSE)


@pytest.mark.parametrize(
    "arch",
    [
        Architecture(16, (LayerSpec(1, 1, 4, 5),) * 3),
        Architecture(8, (LayerSpec(3, 1, 4, 5), None, None)),
        Architecture(8, (LayerSpec(1, 4, 4, 5), None, None)),
        Architecture(8, (LayerSpec(1, 1, 10, 5), None, None)),
        Architecture(8, (LayerSpec(1, 1, 4, 17), None, None)),
        Architecture(8, (LayerSpec(1, 1, 4, 5),) * 2),
        Architecture(8, (LayerSpec(1, 1, 4, 5),) * 4),
    ],
    ids=["hidden", "kv_heads", "queries", "head_dim", "ffn", "too few layers", "too many layers"],
)
def test_an_architecture_that_does_not_fit_is_refused(arch):
    """A slice beyond the end is silently shorter: the network that ran would not be the one that was asked for."""
    model, tokens = Transformer(SPACE), random_tokens(SPACE.base, 1, 4)
    with pytest.raises((ValueError, RuntimeError)):
        model(tokens, arch)


@given(spaces(), st.integers(0, 100))
@settings(max_examples=20)
def test_the_seed_alone_decides_the_weights(space, seed):
    def disturb(value):
        torch.manual_seed(value)
        np.random.seed(value)
        random.seed(value)

    disturb(1)
    state = torch.random.get_rng_state()
    first = Transformer(space, seed=seed).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    disturb(2)
    second = Transformer(space, seed=seed).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = Transformer(space, seed=seed + 1).state_dict()
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_a_forward_and_backward_touch_no_generator():
    model, tokens = scrambled(SPACE), random_tokens(SPACE.base, 2, 5)
    state = torch.random.get_rng_state()
    model.train()(tokens, sample(1), targets=tokens).loss.backward()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_bfloat16_runs_close_to_float32():
    model, tokens, arch = scrambled(SPACE), random_tokens(SPACE.base, 2, 6), sample(3)
    exact = model(tokens, arch, targets=tokens).loss
    rough = model.bfloat16()(tokens, arch, targets=tokens).loss
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.05)
