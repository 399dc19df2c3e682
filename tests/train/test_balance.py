"""A supernet of experts trains: routers are balanced by loss or by bias, and who is idle is told by layer."""

import logging

import pytest
import torch
from train_script import SEQUENCES, SETTINGS

from llmnas.space import SearchSpace
from llmnas.supernet import Transformer, extract
from llmnas.train.balance import Balance
from llmnas.train.engine import start_processes
from llmnas.train.sampling import OneNetwork, SupernetSampler
from llmnas.train.settings import MoeSettings, TrainSettings
from llmnas.train.trainer import train

SPACE = SearchSpace.from_dict(
    {
        "base": {"vocab_size": 64},
        "layers": 3,
        "hidden_size": [16, 32],
        "depth": [2, 3],
        "kv_heads": 1,
        "queries_per_group": [1, 2],
        "head_dim": 8,
        "ffn_size": {"choices": [16, 32], "per_layer": True},
        "experts": {"choices": [1, 2, 4], "per_layer": True},
        "top_k": {"choices": [1, 2], "per_layer": True},
    }
)


def settings_of(**changes):
    return TrainSettings.model_validate({**SETTINGS.model_dump(), "steps": 30, "save_every": 1000, **changes})


def trained(settings, sampler=None, model=None):
    logged = {}
    model = model or Transformer(SPACE, seed=0)
    sampler = sampler or SupernetSampler(SPACE, None, settings.sampler, seed=0)
    train(model, sampler, SEQUENCES, settings, start_processes(), log=logged.setdefault)
    return model, logged


def skew(model):
    """A router that begins with a favourite."""
    with torch.no_grad():
        for layer in model.layers:
            layer.ffn.balance.copy_(torch.tensor([0.3, 0.0, 0.0, 0.0]))
    return model


@pytest.mark.parametrize("kind", ["single", "sandwich"])
def test_a_supernet_of_experts_learns(kind):
    _, logged = trained(settings_of(sampler={"kind": kind}))
    losses = [metrics["train_loss"] for metrics in logged.values()]
    assert sum(losses[-5:]) / 5 < losses[0] - 0.3
    last = [metrics for metrics in logged.values() if "expert_load_max" in metrics][-1]
    assert last["expert_load_max"] >= 1
    assert last["router_entropy"] > 0
    assert last["expert_tokens_dropped"] == 0


def test_the_bias_evens_out_a_router_with_a_favourite_and_none_does_not():
    largest = SPACE.largest()
    loads = {}
    for balance in ("bias", "none"):
        rate = {"bias_rate": 0.01} if balance == "bias" else {}
        settings = settings_of(steps=60, lr=1e-4, moe={"balance": balance, "z_weight": 0, **rate})
        _, logged = trained(settings, OneNetwork(largest), skew(Transformer(SPACE, seed=0)))
        found = [metrics["expert_load_max"] for metrics in logged.values()]
        loads[balance] = sum(found[-5:]) / 5
    assert loads["bias"] < loads["none"] - 0.2  # of 64 skewed tokens an even share is out of reach


def test_the_balance_loss_is_part_of_what_is_trained():
    largest, tokens = SPACE.largest(), torch.arange(32).view(2, 16)
    model = skew(Transformer(SPACE, seed=0))
    plain, balanced = (model(tokens, largest, targets=tokens, balance_weight=w) for w in (0.0, 0.5))
    expected = torch.stack([r.balance_loss() for r in plain.routings.values()]).mean()
    torch.testing.assert_close(balanced.loss - plain.loss, 0.5 * expected)
    torch.testing.assert_close(balanced.cross_entropy, plain.cross_entropy)
    assert sorted(plain.routings) == [0, 1, 2]


def test_the_z_loss_is_part_of_what_is_trained_and_makes_logits_small():
    largest, tokens = SPACE.largest(), torch.arange(32).view(2, 16)
    model = skew(Transformer(SPACE, seed=0))
    plain, small = (model(tokens, largest, targets=tokens, z_weight=w) for w in (0.0, 0.5))
    expected = torch.stack([r.z for r in plain.routings.values()]).mean()
    torch.testing.assert_close(small.loss - plain.loss, 0.5 * expected)
    torch.testing.assert_close(small.cross_entropy, plain.cross_entropy)
    sizes = {}
    for weight in (0.0, 10.0):
        moe = {"balance": "none", "z_weight": weight}
        trained_so, _ = trained(settings_of(steps=20, moe=moe), OneNetwork(largest), Transformer(SPACE, seed=0))
        with torch.no_grad():
            routings = trained_so(tokens, largest, targets=tokens).routings.values()
        sizes[weight] = sum(float(r.z) for r in routings)
    assert sizes[10.0] < 0.8 * sizes[0.0]


def test_a_cut_out_network_keeps_its_biases():
    model = skew(Transformer(SPACE, seed=0))
    small = extract(model, SPACE.largest())
    assert all(torch.equal(a.ffn.balance, b.ffn.balance) for a, b in zip(model.layers, small.layers, strict=True))


def test_experts_that_never_got_a_token_are_named_with_their_layer(caplog):
    model = Transformer(SPACE, seed=0)
    with torch.no_grad():
        model.layers[1].ffn.balance.copy_(torch.tensor([9.0, 9.0, 0, 0]))
    with caplog.at_level(logging.WARNING):
        trained(settings_of(steps=2, moe={"balance": "none"}), OneNetwork(SPACE.largest()), model)
    assert "layer 1: experts [2, 3] got no token in the whole run" in caplog.text


def test_who_is_idle_is_told_of_the_whole_run_also_after_a_restart(tmp_path, caplog):
    """The second start finds all steps done: experts that got tokens before it are not idle."""
    for _ in range(2):
        caplog.clear()
        model = Transformer(SPACE, seed=0)
        with torch.no_grad():
            model.layers[1].ffn.balance.copy_(torch.tensor([9.0, 9.0, 0, 0]))
        settings = settings_of(steps=2, moe={"balance": "none"})
        with caplog.at_level(logging.WARNING):
            train(model, OneNetwork(SPACE.largest()), SEQUENCES, settings, start_processes(), folder=tmp_path)
        told = [record.getMessage() for record in caplog.records if "got no token" in record.getMessage()]
        assert told == ["layer 1: experts [2, 3] got no token in the whole run"]


def test_bias_moves_by_its_rate_towards_even_load():
    model = Transformer(SPACE, seed=0)
    balance = Balance(model, MoeSettings(balance="bias", bias_rate=0.5))
    out = model(torch.arange(32).view(2, 16), SPACE.largest(), targets=torch.arange(32).view(2, 16))
    balance.add(out.routings)
    balance.end_step()
    for i, routing in out.routings.items():
        torch.testing.assert_close(model.layers[i].ffn.balance, 0.5 * torch.sign(0.25 - routing.load))
