"""Importance against removal, and reordering that changes nothing for the largest network but helps the small ones."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from glass import SMALL, WEIGHTS, glass, speech
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import random_tokens, scrambled, spaces

from llmnas.rng import generator
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec, SearchSpace
from llmnas.supernet.importance import Importance, importance, layer_importance, reorder, reorder_experts


@given(spaces(max_layers=2, kinds=True), st.integers(0, 100))
@settings(max_examples=60)
def test_reordering_leaves_the_largest_network_as_it_was(space, seed):
    # low-bit layers round: another order of a sum may move a code, so weights are dense here
    space = SearchSpace.from_dict({**space.model_dump(), "weights": "dense"})
    model = scrambled(space, seed)
    tokens = random_tokens(space.base, 2, 6, seed)
    before = model(tokens)
    generated = torch.Generator().manual_seed(seed)
    scores = importance(model, [tokens])
    shuffled = Importance(
        torch.rand(scores.hidden.shape, generator=generated),
        *(
            {name: torch.rand(score.shape, generator=generated) for name, score in part.items()}
            for part in (scores.groups, scores.queries, scores.channels, scores.experts)
        ),
    )
    reorder(model, shuffled)
    torch.testing.assert_close(model(tokens), before, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def batches():
    return speech()


def loss(model, arch, batches):
    with torch.no_grad():
        return np.mean([float(model(b[:, :-1], arch, targets=b[:, 1:]).loss) for b in batches])


def test_the_model_of_the_package_is_read_right(batches):
    known = json.loads((WEIGHTS / "en.meta.json").read_text())["val_loss"]
    found = loss(glass(), None, batches[:4])
    assert known < found < np.log(1024)  # other text than it was trained on, and still better than a guess


def test_leading_slices_are_better_after_reordering_than_before_or_at_random(batches):
    """Real weights, real text; scored on other windows than measured on."""
    space = SearchSpace.from_dict(SMALL)
    scores = importance(glass(), batches[4:])
    shuffled = glass()
    rng = generator(0, "shuffle")

    def noise(part):
        return {name: torch.from_numpy(rng.random(score.shape)) for name, score in part.items()}

    reorder(
        shuffled,
        Importance(
            torch.from_numpy(rng.random(128)), *map(noise, (scores.groups, scores.queries, scores.channels, {}))
        ),
    )
    sorted_by_importance = glass()
    reorder(sorted_by_importance, scores)
    torch.testing.assert_close(
        sorted_by_importance(batches[0][:, :-1]), glass()(batches[0][:, :-1]), rtol=1e-4, atol=1e-4
    )
    for ffn_size, hidden_size in ((170, 128), (256, 96)):
        arch = SearchSpace.from_dict({**SMALL, "ffn_size": ffn_size, "hidden_size": hidden_size}).largest()
        assert space.contains(arch)
        best = loss(sorted_by_importance, arch, batches[:4])
        assert best < loss(glass(), arch, batches[:4]) - 0.02
        assert best < loss(shuffled, arch, batches[:4]) - 0.02


def test_scores_order_channels_as_removal_does(batches):
    """Compare with the change of the logits when each of 24 channels is really removed."""
    model, windows = glass(), batches[:1]
    scores = importance(model, windows).channels["layers.1.ffn"]
    with torch.no_grad():
        whole = model(windows[0][:, :-1])
    some = torch.linspace(0, 340, 24).long().tolist()
    changes = []
    for channel in some:
        cut = glass()
        with torch.no_grad():
            cut.layers[1].ffn.down.weight[:, channel] = 0
            changes.append(float((cut(windows[0][:, :-1]) - whole).square().mean()))
    correlation = np.corrcoef(np.argsort(np.argsort(changes)), np.argsort(np.argsort(scores[some].numpy())))[0, 1]
    assert correlation > 0.6


def test_experts_are_sorted_by_load_times_the_norm_of_what_they_write():
    """By hand, token by token; an expert that is chosen most and writes nothing is the last."""
    spec = LayerSpec(1, 1, 4, 8, experts=4, top_k=2)
    model = scrambled(FixedShape(BaseModel(11, norm_top_k=True), Architecture(8, (spec,))), 3)
    ffn, name, seen = model.layers[0].ffn, "layers.0.ffn", []
    with torch.no_grad():
        ffn.balance[1] += 9  # every token chooses it
        ffn.down.weight[1] = 0
    tokens = random_tokens(model.base, 2, 12)
    handle = ffn.register_forward_hook(lambda module, args, out: seen.extend(args[0].flatten(0, -2)))
    with torch.no_grad():
        before = model(tokens)
    handle.remove()
    energy = torch.zeros(4)
    for x in seen:
        scores = (ffn.router.weight @ x).softmax(0).detach()
        chosen = (scores + ffn.balance).topk(2).indices
        for e in chosen.tolist():
            gate, up, down = (getattr(ffn, name).weight[e] for name in ("gate", "up", "down"))
            wrote = down @ (F.silu(gate @ x) * (up @ x)) * scores[e] / scores[chosen].sum()
            energy[e] += wrote.detach().square().sum()
    scores = importance(model, [tokens])
    torch.testing.assert_close(scores.experts[name], (energy / tokens.numel()).sqrt(), rtol=1e-4, atol=1e-6)
    reorder_experts(model, scores)
    found = importance(model, [tokens]).experts[name]
    assert found.tolist() == sorted(found.tolist(), reverse=True)
    assert found[-1] == 0
    assert ffn.balance[-1] > 8  # its router row, bias and matrices moved together
    torch.testing.assert_close(model(tokens), before, rtol=1e-4, atol=1e-5)


def test_layer_importance_is_the_change_of_the_loss(batches):
    model = glass()
    whole = model.envelope
    found = layer_importance(model, batches[:1])
    without = SearchSpace.from_dict(SMALL).build(128, dict(whole.kept[1:]))
    assert found[0] == pytest.approx(loss(model, without, batches[:1]) - loss(model, None, batches[:1]), abs=1e-5)
    assert len(found) == 4
