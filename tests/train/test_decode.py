"""Decoding and the expected cost against brute force over whole small spaces."""

import itertools
import math

import pytest
import torch

from llmnas.cost import Budget, count_params
from llmnas.errors import UserError
from llmnas.space import Architecture, LayerSpec, SearchSpace
from llmnas.supernet.mixture import first_alphas, weights_of
from llmnas.train.decode import Table, decode, free_share
from llmnas.train.relaxed_cost import ExpectedParams, budget_penalty


def space(policy="any", **changes):
    return SearchSpace.from_dict(
        {
            "base": {"vocab_size": 50, "max_seq": 32}, "layers": 3, "hidden_size": [8, 16],
            "depth": {"choices": [2, 3], "policy": policy}, "kv_heads": [1, 2], "queries_per_group": 1, "head_dim": 4,
            "ffn_size": {"choices": [8, 16, 32], "per_layer": True},
            "mixer": {"choices": ["none", "attention"], "per_layer": True}, **changes,
        }
    )  # fmt: skip


def drawn_weights(space, seed):
    generator = torch.Generator().manual_seed(seed)
    alphas = {n: torch.randn(a.shape, generator=generator).double() for n, a in first_alphas(space, 0).items()}
    return weights_of(space, alphas)


def everything(space, weights):
    """(log probability, architecture) of every combination of picks that is a member."""
    table = Table.of(space, weights)
    for picks in itertools.product(*(range(len(score)) for score in table.scores)):
        arch = table.architecture(picks)
        if arch is not None:
            yield table.score(picks), arch


@pytest.mark.parametrize("policy", ["any", "keep_ends", "even"])
@pytest.mark.parametrize("seed", range(3))
def test_decoding_is_the_likeliest_member_within_the_budget(policy, seed):
    s = space(policy)
    weights = drawn_weights(s, seed)
    members = list(everything(s, weights))
    sizes = sorted(count_params(arch, s.base).total for _, arch in members)
    for budget in (None, Budget(max_params=sizes[len(sizes) // 3]), Budget(min_params=sizes[-9])):
        found = decode(s, weights, budget)
        assert s.contains(found)
        within = [(p, a) for p, a in members if budget is None or budget.admits(s.base, a)]
        best = max(p for p, _ in within)
        assert max(p for p, a in within if a == found) == pytest.approx(best)


def test_picks_and_architectures_are_inverse():
    s = space()
    weights = drawn_weights(s, 0)
    table = Table.of(s, weights)
    for _, arch in itertools.islice(everything(s, weights), 0, None, 37):
        assert table.architecture(table.picks(arch)) == arch


def test_a_budget_that_nothing_meets_is_refused():
    with pytest.raises(UserError):
        decode(space(), drawn_weights(space(), 0), Budget(max_params=10))


@pytest.mark.parametrize("policy", ["keep_ends", "even"])
def test_expected_parameters_are_the_mean_over_all_members(policy):
    """Depth is free here, so that the product of the weights is a distribution over members."""
    s = space(policy)
    weights = drawn_weights(s, 1)
    members = list(everything(s, weights))
    chances = [math.exp(p) for p, _ in members]
    assert sum(chances) == pytest.approx(1)
    mean = sum(p * count_params(a, s.base).total for p, (_, a) in zip(chances, members, strict=True))
    assert float(ExpectedParams(s)(weights)) == pytest.approx(mean, rel=1e-9)


def test_expected_parameters_pull_towards_the_smaller_choice():
    s = space()
    alphas = {name: alpha.double().detach().requires_grad_() for name, alpha in first_alphas(s, 0).items()}
    ExpectedParams(s)(weights_of(s, alphas)).backward()
    for name, alpha in alphas.items():
        assert (alpha.grad[:, 0] < 0).all(), name
        assert (alpha.grad[:, -1] > 0).all(), name


def test_penalty_is_the_logarithm_of_what_is_missed():
    expected = torch.tensor([50.0, 100.0, 400.0])
    found = [float(budget_penalty(e, Budget(max_params=200, min_params=100))) for e in expected]
    assert found == pytest.approx([0.6931471, 0, 0.6931471])


def test_share_of_what_became_parameter_free():
    full, bare = LayerSpec(1, 1, 4, 8), LayerSpec(1, 1, 4, 8, mixer="none")
    assert free_share(Architecture(8, (full, full))) == 0
    assert free_share(Architecture(8, (full, bare, None))) == 0.5
