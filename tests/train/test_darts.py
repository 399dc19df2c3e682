"""The loop: what it learns, that it repeats and resumes bit for bit, when it stops, what it refuses."""

import numpy as np
import pytest
import torch

from llmnas.cost import Budget, count_params
from llmnas.data.halves import halves
from llmnas.errors import Preempted, UserError
from llmnas.space import SearchSpace
from llmnas.space.restrict import restricted
from llmnas.supernet import Transformer
from llmnas.train.alphas import AlphaTraining
from llmnas.train.darts import Search, require_usable, search_relaxed
from llmnas.train.darts_settings import DartsSettings
from llmnas.train.engine import start_processes
from llmnas.train.settings import TrainSettings

SPACE = SearchSpace.from_dict(
    {
        "base": {"vocab_size": 32, "max_seq": 32}, "layers": 2, "hidden_size": [8, 16], "depth": {"choices": [1, 2]},
        "kv_heads": 1, "queries_per_group": [1, 2], "head_dim": 4, "ffn_size": {"choices": [8, 16], "per_layer": True},
        "mixer": {"choices": ["none", "attention"], "per_layer": True},
    }
)  # fmt: skip


def text(count=4000):
    """Each token is the one three places before it: only attention can know."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 32, count)
    for start in range(0, count - 12, 12):
        tokens[start + 3 : start + 12] = np.tile(tokens[start : start + 3], 3)
    return tokens


def settings_of(**changes):
    return TrainSettings(**{"steps": 8, "batch_size": 4, "seq_len": 24, "lr": 0.01, "threads": 1, **changes})


def prepared(settings, darts, budget=Budget()):  # noqa: B008 (frozen)
    torch.manual_seed(np.random.default_rng().integers(2**31))  # global state must not matter
    data = halves(text(), settings.seq_len, 0, darts.share)
    model = Transformer(SPACE, seed=0)
    return Search(model, restricted(SPACE, darts.only), budget, data, settings, darts, start_processes(), 0)


def final(search):
    alphas = {name: torch.tensor(value) for name, value in search.alphas.state().items()}
    return {**alphas, **{name: value.clone() for name, value in search.mixture.state_dict().items()}}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("order", ["first", "second"])
def test_same_seed_same_bits_and_a_stopped_run_goes_on_bit_for_bit(order, tmp_path):
    settings = settings_of(save_every=5, log_every=1)
    darts = DartsSettings(order=order, trace_every=2)
    whole, again = prepared(settings, darts), prepared(settings, darts)
    first, second = search_relaxed(whole), search_relaxed(again)
    assert equal(final(whole), final(again))
    assert first.trace == second.trace
    assert [point.step for point in first.trace] == [2, 4, 6, 8]

    def dies(step, metrics):
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_relaxed(prepared(settings, darts), folder=tmp_path, identity="a", log=dies)
    rest = prepared(settings, darts)
    steps = []
    found = search_relaxed(rest, folder=tmp_path, identity="a", log=lambda step, metrics: steps.append(step))
    assert min(steps) == 6
    assert equal(final(whole), final(rest))
    assert found.trace == first.trace
    assert found.arch == first.arch
    with pytest.raises(UserError, match="another run"):
        search_relaxed(prepared(settings, darts), folder=tmp_path, identity="b")


def test_sigterm_saves_at_the_step_boundary(tmp_path):
    import os
    import signal

    settings, darts = settings_of(log_every=1), DartsSettings()
    with pytest.raises(Preempted, match="step 3"):
        search_relaxed(
            prepared(settings, darts), folder=tmp_path, identity="a",
            log=lambda step, metrics: os.kill(os.getpid(), signal.SIGTERM) if step == 3 else None,
        )  # fmt: skip
    rest, whole = prepared(settings, darts), prepared(settings, darts)
    search_relaxed(rest, folder=tmp_path, identity="a")
    search_relaxed(whole)
    assert equal(final(rest), final(whole))


def test_it_finds_that_the_text_needs_attention():
    """Copying from three places back: a network without a mixer predicts nothing."""
    search = prepared(settings_of(steps=150, batch_size=8), DartsSettings(alpha_lr=0.03))
    found = search_relaxed(search)
    assert any(spec.mixer == "attention" for _, spec in found.arch.kept)
    attention = [row[1] for row in found.weights["mixer"]]
    assert max(attention) > 0.7


def test_weights_do_not_see_the_data_of_alpha_and_the_reverse():
    """A step of either kind reads only its own stream."""
    search = prepared(settings_of(), DartsSettings())
    before = final(search)
    search.alpha_step(0)
    after = final(search)
    assert not torch.equal(before["alpha.mixer"], after["alpha.mixer"])
    assert all(torch.equal(before[name], after[name]) for name in search.mixture.state_dict())
    search.weight_step(0)
    assert torch.equal(final(search)["alpha.mixer"], after["alpha.mixer"])
    assert not torch.equal(final(search)["supernet.embedding.weight"], after["supernet.embedding.weight"])


def test_a_penalty_brings_the_expected_size_into_the_budget():
    budget = Budget(max_params=1100)
    loose, tight = DartsSettings(alpha_lr=0.1, penalty=0.0), DartsSettings(alpha_lr=0.1, penalty=20.0)
    expected = {}
    for darts in (loose, tight):
        search = prepared(settings_of(steps=40), darts, budget)
        found = search_relaxed(search)
        expected[darts.penalty] = float(search.expected_params().detach())
        assert count_params(found.arch, SPACE.base).total <= 1100
    assert expected[20.0] < 1.05 * 1100 < expected[0.0]


def test_restricted_choices_are_the_only_ones_decided():
    darts = DartsSettings(only={"mixer": ("attention",), "depth": (2,), "hidden_size": (8, 16)})
    search = prepared(settings_of(steps=3), darts)
    assert set(search.alphas.values) == {"hidden_size", "queries_per_group", "ffn_size"}
    found = search_relaxed(search)
    assert found.arch.depth == 2
    assert {spec.mixer for _, spec in found.arch.kept} == {"attention"}
    assert SPACE.contains(found.arch)


def test_alpha_stands_still_before_alpha_from():
    search = prepared(settings_of(steps=6), DartsSettings(alpha_from=4, trace_every=1))
    steps = []
    found = search_relaxed(search, log=lambda step, metrics: steps.append((step, "alpha_loss" in metrics)))
    assert [point.step for point in found.trace] == [5, 6]
    assert (5, True) in steps


def test_early_stopping_goes_back_and_freezes_alpha(monkeypatch):
    """Eigenvalues that double: the search ends at the first comparison and alpha is that of a window before."""
    values = iter([1.0, 2.0, 4.0, 8.0, 16.0])
    monkeypatch.setattr("llmnas.train.darts.dominant_eigenvalue", lambda loss, alphas: next(values))
    search = prepared(settings_of(steps=8), DartsSettings(trace_every=1, early_stop=True, window=1))
    seen = []
    found = search_relaxed(search, log=lambda step, metrics: None, evaluate=lambda arch: seen.append(arch) or {})
    assert [point.eigenvalue for point in found.trace] == [1.0, 2.0]
    assert found.stopped == found.trace[0]
    assert found.arch == found.trace[0].arch
    then, now = search.alphas.at(0), search.alphas.values
    assert all(torch.equal(then[name], now[name]) for name in now)
    assert not torch.equal(search.alphas.at(1)["mixer"], now["mixer"])


def test_regularisation_pulls_alpha_towards_even_weights():
    """Adam with L2 on alpha alone: constant gradients, more decay, evener weights."""
    largest = []
    for decay in (0.0, 1.0):
        alphas = AlphaTraining(SPACE, DartsSettings(alpha_decay=decay, alpha_lr=0.1), 0, torch.device("cpu"))
        for _ in range(60):
            alphas.step([torch.tensor([[0.1, -0.1]]).expand_as(alpha) for alpha in alphas.parameters()])
        largest.append(float(alphas.weights()["mixer"].max()))
    assert largest[1] < 0.6 < 0.95 < largest[0]


@pytest.mark.parametrize(
    ("train", "darts", "budget", "processes", "complaint"),
    [
        ({}, {}, Budget(), 2, "one process, not 2"),
        ({"zero_stage": 2}, {}, Budget(), 1, "zero_stage = 2"),
        ({"micro_batch": 2}, {}, Budget(), 1, "train.micro_batch does nothing"),
        ({"sampler": {"kind": "uniform"}}, {}, Budget(), 1, "train.sampler does nothing"),
        ({}, {"penalty": 2.0}, Budget(), 1, "darts.penalty does nothing without budget.max_params"),
        ({}, {"alpha_from": 8}, Budget(), 1, "alpha would never move in 8 steps"),
    ],
)
def test_what_does_not_go_together_is_refused(train, darts, budget, processes, complaint):
    with pytest.raises(UserError, match=complaint):
        require_usable(settings_of(**train), budget, DartsSettings(**darts), processes)


@pytest.mark.parametrize(
    ("only", "complaint"),
    [
        ({"mixers": ("attention",)}, "'mixers' is no decision; allowed: hidden_size, depth"),
        ({"mixer": ("mlgru",)}, "'mlgru' is no choice of the space; allowed: none, attention"),
        ({"depth": ()}, "no choice is left"),
    ],
)
def test_wrong_restrictions_are_refused(only, complaint):
    with pytest.raises(ValueError, match=complaint):
        restricted(SPACE, only)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"xi": 0.1}, "xi does nothing"),
        ({"early_stop": True}, "set trace_every above 0"),
        ({"trace_sequences": 4}, "trace_sequences does nothing"),
        ({"trace_every": 2, "window": 3}, "window does nothing"),
    ],
)
def test_idle_settings_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        DartsSettings(**settings)
