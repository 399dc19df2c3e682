"""A candidate's own statistics: what they are, what is mis-scored without them, and that the supernet keeps its own."""

import copy

import numpy as np
import pytest
import torch
from test_quality import SPACE as PLAIN

from llmnas.cost import Workload
from llmnas.errors import UserError
from llmnas.evaluate.evaluator import Evaluator
from llmnas.evaluate.quality import window_losses
from llmnas.evaluate.recalibrate import even_bias, recalibrate, statistics
from llmnas.space import SearchSpace
from llmnas.supernet import Transformer
from llmnas.train.balance import Balance
from llmnas.train.settings import MoeSettings

BASE = {
    "base": {"vocab_size": 64}, "layers": 2, "hidden_size": [16], "depth": 2, "kv_heads": 1, "queries_per_group": 1,
    "head_dim": 8, "ffn_size": [4, 16, 64],
}  # fmt: skip
SPACE = SearchSpace.from_dict(BASE)
EXPERTS = SearchSpace.from_dict({**BASE, "ffn_size": 16, "experts": [2, 4]})
# products: some tokens are frequent, many never occur
TOKENS = np.prod(np.random.default_rng(0).integers(0, 8, (2, 6000)), axis=0)
WINDOWS = np.lib.stride_tricks.sliding_window_view(TOKENS, 33)[::32].copy()
TEXT, HELD_OUT = WINDOWS[:150], WINDOWS[150:]


def chain():
    """Windows of a text in which most tokens say which one comes next: a feed-forward has something to learn."""
    rng = np.random.default_rng(0)
    successor, tokens = rng.permutation(64), [0]
    for _ in range(5999):
        tokens.append(int(successor[tokens[-1]] if rng.random() < 0.8 else rng.integers(64)))
    return np.lib.stride_tricks.sliding_window_view(np.array(tokens), 33)[::32].copy()


CHAIN, CHAIN_HELD_OUT = chain()[:150], chain()[150:]


class UserLayer(torch.nn.Module):
    """A feed-forward of a user's own: batch norm over the channels of ours."""

    def __init__(self, inner, width):
        super().__init__()
        self.inner, self.norm = inner, torch.nn.BatchNorm1d(width)

    def forward(self, x, spec):
        return self.norm(self.inner(x, spec).transpose(1, 2)).transpose(1, 2)


def train(model, networks, steps, after=lambda out: None, text=TEXT):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    text = torch.from_numpy(text)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for step in range(steps):
        batch = text[torch.randint(len(text), (8,), generator=generator)]
        out = model(batch[:, :-1], networks[step % len(networks)], targets=batch[:, 1:])
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        after(out)
    return model.eval()


@pytest.fixture(scope="module")
def normed():
    """A supernet with batch norms, trained as the largest network more often than as the others."""
    model = Transformer(SPACE, seed=0)
    for layer in model.layers:
        layer.ffn = UserLayer(layer.ffn, 16)
    small, middle, large = SPACE.smallest(), SPACE.middle(), SPACE.largest()
    return train(model, [small, middle, large, large, large], 200, text=CHAIN)


def refreshed(model, arch):
    """The oracle: a copy whose batch norms take the averages of one pass over the text, as torch does it."""
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.momentum = None
            module.reset_running_stats()
            module.train()
    with torch.no_grad():
        twin(torch.from_numpy(CHAIN[:, :-1]), arch)
    return twin.eval()


def test_a_candidate_is_mis_scored_without_its_own_statistics(normed):
    """With stale ones one layer looks better than two narrow ones; fresh ones give the oracle's losses and order."""
    before = {name: value.clone() for name, value in normed.state_dict().items()}
    archs = [SPACE.smallest(), SPACE.build(16, {0: SPACE.middle().kept[0][1]}), SPACE.largest()]
    stale, fresh, oracle = [], [], []
    for arch in archs:
        twin, values = refreshed(normed, arch), recalibrate(normed, arch, CHAIN, batch=len(CHAIN))
        assert values.keys() == {
            f"layers.{i}.ffn.norm.running_{what}" for i, _ in arch.kept for what in ("mean", "var")
        }
        for name, value in values.items():
            torch.testing.assert_close(value, twin.state_dict()[name], rtol=1e-4, atol=1e-6)
        stale.append(window_losses(normed, arch, CHAIN_HELD_OUT).mean())
        fresh.append(window_losses(normed, arch, CHAIN_HELD_OUT, values=values).mean())
        oracle.append(window_losses(twin, arch, CHAIN_HELD_OUT).mean())
    assert fresh == pytest.approx(oracle, abs=1e-5)
    assert stale[0] > fresh[0] + 0.3
    assert np.argsort(stale).tolist() == [2, 1, 0]
    assert np.argsort(fresh).tolist() == np.argsort(oracle).tolist() == [2, 0, 1]
    assert all(torch.equal(value, before[name]) for name, value in normed.state_dict().items())
    assert not any(module._forward_hooks for module in normed.modules())


def test_statistics_of_several_batches_are_those_of_the_whole_text(normed):
    """The variance between batches counts too. In the first norm only: later ones see what batches made of it."""
    few, all_ = (recalibrate(normed, SPACE.middle(), CHAIN, batch=size) for size in (7, 150))
    for name in ("layers.0.ffn.norm.running_mean", "layers.0.ffn.norm.running_var"):
        torch.testing.assert_close(few[name], all_[name], rtol=1e-5, atol=1e-6)


def test_a_layer_that_the_candidate_skips_keeps_what_it_has(normed):
    arch = SPACE.build(16, {1: SPACE.largest().kept[1][1]})
    assert recalibrate(normed, arch, TEXT).keys() == {f"layers.1.ffn.norm.running_{what}" for what in ("mean", "var")}


def test_a_batch_norm_in_training_mode_is_refused(normed):
    twin = copy.deepcopy(normed)
    twin.layers[0].ffn.norm.train()
    with pytest.raises(ValueError, match=r"layers\.0\.ffn\.norm is in training mode"):
        recalibrate(twin, None, TEXT)


@pytest.fixture(scope="module")
def experts():
    """A supernet whose routers are balanced by a bias, for four experts more often than for two."""
    model = Transformer(EXPERTS, seed=0)
    balance = Balance(model, MoeSettings(balance="bias", bias_rate=0.01))

    def after(out):
        balance.add(out.routings)
        balance.end_step()

    return train(model, [EXPERTS.largest()] * 7 + [EXPERTS.smallest()], 120, after)


def greatest_load(model, arch, values, text=TEXT):
    """Over even load, of each layer."""
    tokens, targets = torch.from_numpy(text[:, :-1]), torch.from_numpy(text[:, 1:])
    with torch.no_grad():
        out = torch.func.functional_call(model, values, (tokens, arch), {"targets": targets})
    return [float((routing.load * len(routing.load)).max()) for routing in out.routings.values()]


def test_the_bias_of_four_experts_does_not_balance_two(experts):
    """Fresh biases do, on the candidate's own text and on another, and are those that the rule of training ends at.

    Told by who gets the tokens: the losses of this small a model differ by 5e-4 nats, which rounding can decide.
    """
    before = {name: value.clone() for name, value in experts.state_dict().items()}
    arch = EXPERTS.smallest()
    values = recalibrate(experts, arch, TEXT, batch=len(TEXT))
    assert max(greatest_load(experts, arch, {})) > 1.5
    assert max(greatest_load(experts, arch, values)) < 1.05
    twin = copy.deepcopy(experts)
    for rate in (0.02, 0.005, 0.001):
        rule = Balance(twin, MoeSettings(balance="bias", bias_rate=rate))
        for _ in range(150):
            with torch.no_grad():
                rule.add(twin(torch.from_numpy(TEXT[:, :-1]), arch, targets=torch.from_numpy(TEXT[:, 1:])).routings)
            rule.end_step()
    for i in (0, 1):
        ours, theirs = (bias[0] - bias[1] for bias in (values[f"layers.{i}.ffn.balance"], twin.layers[i].ffn.balance))
        assert float(ours) == pytest.approx(float(theirs), abs=0.01)  # a constant on all experts changes nothing
        assert values[f"layers.{i}.ffn.balance"][2:].equal(before[f"layers.{i}.ffn.balance"][2:])
    stale, fresh, oracle = (
        greatest_load(model, arch, found, HELD_OUT) for model, found in ((experts, {}), (experts, values), (twin, {}))
    )
    assert max(stale) > 1.5
    assert max(fresh) < 1.15
    assert fresh == pytest.approx(oracle, abs=0.1)
    assert all(torch.equal(value, before[name]) for name, value in experts.state_dict().items())


def test_even_bias_by_trying_all_thresholds():
    """Two experts, one each: the bias lies where half of the tokens prefer either."""
    scores = torch.rand(999, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.4])
    bias = even_bias(scores, 1, torch.zeros(2))
    assert float(bias[1] - bias[0]) == pytest.approx(float((scores[:, 0] - scores[:, 1]).median()), abs=2e-3)


def test_the_evaluator_uses_them_and_refuses_where_there_are_none(normed):
    arch = SPACE.smallest()
    found = Evaluator(normed, HELD_OUT, len(HELD_OUT), 3.5, Workload(), TEXT).measure(arch)
    values = recalibrate(normed, arch, TEXT)
    assert found["val_loss"] == pytest.approx(window_losses(normed, arch, HELD_OUT, values=values).mean())
    plain = Transformer(PLAIN, seed=0)
    assert statistics(plain) == {}
    assert recalibrate(plain, None, TEXT) == {}
    with pytest.raises(UserError, match="nothing in this supernet holds statistics"):
        Evaluator(plain, HELD_OUT, 4, 3.5, Workload(), TEXT)
