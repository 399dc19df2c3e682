"""One sandwich step reaches both ends of the experts: all and the fewest of them, the greatest and the least k."""

import itertools
from collections import Counter

import pytest
import torch
from train_script import SEQUENCES, SETTINGS

from llmnas.nn.moe import Experts
from llmnas.space import SearchSpace
from llmnas.supernet import Transformer
from llmnas.train.balance import Balance
from llmnas.train.engine import Engine, start_processes
from llmnas.train.sampling import SupernetSampler
from llmnas.train.schedule import learning_rate
from llmnas.train.settings import TrainSettings
from llmnas.train.trainer import train_step

E_MIN, E_MAX, K_MIN, K_MAX = 2, 8, 1, 2
SPACE = SearchSpace.from_dict(
    {
        "base": {"vocab_size": 64},
        "layers": 3,
        "hidden_size": [16, 32],
        "depth": [2, 3],
        "kv_heads": 1,
        "queries_per_group": 1,
        "head_dim": 8,
        "ffn_size": {"choices": [8, 16], "per_layer": True},
        "experts": {"choices": [E_MIN, 4, E_MAX], "per_layer": True},
        "top_k": {"choices": [K_MIN, K_MAX], "per_layer": True},
    }
)


def one_step(space, kind="sandwich"):
    """What every mixture ran in one optimizer step, network by network: [(layer, experts, top_k, experts with tokens)];
    and how far every expert of every layer moved."""
    settings = TrainSettings.model_validate({**SETTINGS.model_dump(), "sampler": {"kind": kind, "random": 2}})
    model = Transformer(space, seed=0)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    seen, numbers = [], {id(layer.ffn): i for i, layer in enumerate(model.layers)}

    def note(module, args, out):
        _, routing = out
        spec, busy = args[1], 1 if routing is None else int((routing.load > 0).sum())
        assert routing is None or len(routing.load) == spec.experts
        seen.append((numbers[id(module)], spec.experts, spec.top_k, busy))

    for module in model.modules():
        if isinstance(module, Experts):
            module.register_forward_hook(note)
    sampler = SupernetSampler(space, None, settings.sampler, seed=0)
    engine = Engine(model, settings, start_processes())
    train_step(
        engine, sampler.networks(0), SEQUENCES, settings, 0, Balance(model, settings.moe), learning_rate(0, settings)
    )
    moved = {
        i: (layer.ffn.gate.weight.detach() - before[f"layers.{i}.ffn.gate.weight"]).abs().amax((1, 2))
        for i, layer in enumerate(model.layers)
    }
    return seen, moved


def test_the_largest_and_the_smallest_numbers_of_experts_and_choices_run_in_one_step():
    seen, moved = one_step(SPACE)
    largest, smallest = SPACE.largest(), SPACE.smallest()
    ends = {(spec.experts, spec.top_k) for arch in (largest, smallest) for _, spec in arch.kept}
    assert ends == {(E_MAX, K_MAX), (E_MIN, K_MIN)}
    # the sandwich: the largest first, the smallest last, two random ones between them
    first, last = seen[: largest.depth], seen[-smallest.depth :]
    assert [(i, e, k) for i, e, k, _ in first] == [(i, E_MAX, K_MAX) for i, _ in largest.kept]
    assert [(i, e, k) for i, e, k, _ in last] == [(i, E_MIN, K_MIN) for i, _ in smallest.kept]
    assert len(seen) > len(first) + len(last)
    assert all(K_MIN <= busy <= e for _, e, _, busy in seen)
    # every expert of every layer got tokens from the largest network, and a gradient
    assert all(busy == E_MAX for *_, busy in first)
    assert all((rows > 1e-4).all() for rows in moved.values())


def test_a_dense_layer_is_the_end_where_the_space_has_one():
    seen, _ = one_step(SearchSpace.from_dict({**SPACE.model_dump(), "experts": [1, E_MAX]}))
    assert seen[0][1:3] == (E_MAX, K_MAX)
    assert seen[-1][1:] == (1, 1, 1)


def test_two_random_networks_alone_miss_the_ends():
    """The control: what the first test asks for is the sandwich's doing."""
    seen, _ = one_step(SPACE, "uniform")
    assert [(e, k) for _, e, k, _ in seen[:3]] != [(E_MAX, K_MAX)] * 3
    assert [(e, k) for _, e, k, _ in seen[-2:]] != [(E_MIN, K_MIN)] * 2


@pytest.mark.parametrize("layer", range(3))
def test_the_random_ones_take_every_pair_of_experts_and_k_in_every_layer(layer):
    sampler = SupernetSampler(SPACE, None, SETTINGS.sampler.model_copy(update={"kind": "sandwich"}), seed=0)
    drawn = [arch.layers[layer] for step in range(60) for arch in sampler.networks(step)[1:-1]]
    counts = Counter((spec.experts, spec.top_k) for spec in drawn if spec)
    assert counts.keys() == set(itertools.product((E_MIN, 4, E_MAX), (K_MIN, K_MAX)))
    assert min(counts.values()) > torch.tensor(list(counts.values())).float().mean() / 3
