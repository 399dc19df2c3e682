"""Drafts that share the whole network's weights: agreement, choice, and transformers' assisted generation."""

import json

import numpy as np
import pytest
import torch

from llmnas.cost.speculation import rounds
from llmnas.pipeline.speculate import measured
from llmnas.serve.speculative import Drafting, greedy
from llmnas.space import Architecture, SearchSpace
from llmnas.supernet import Transformer

SPACE = SearchSpace.from_dict(
    {
        "base": {"vocab_size": 64, "tied": True, "max_seq": 64},
        "layers": 3,
        "hidden_size": [16, 32],
        "depth": [1, 2, 3],
        "kv_heads": 2,
        "queries_per_group": 1,
        "head_dim": 8,
        "ffn_size": 32,
    }
)


@pytest.fixture(scope="module")
def model():
    return Transformer(SPACE, seed=0).eval()


@pytest.fixture(scope="module")
def prompts():
    return torch.randint(64, (4, 8), generator=torch.Generator().manual_seed(0))


def dropped(layer):
    largest = SPACE.largest()
    return Architecture(largest.hidden_size, tuple(None if i == layer else s for i, s in enumerate(largest.layers)))


def test_greedy_is_the_likeliest_token_without_a_cache(model, prompts):
    texts = greedy(model, SPACE.largest(), prompts, 6)
    expected = prompts
    for _ in range(6):
        expected = torch.cat([expected, model(expected)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(texts, expected)


def test_the_whole_network_agrees_with_itself_and_a_clock_decides_the_costs(model, prompts):
    ticks = iter(range(10**6))
    drafting = Drafting(model, prompts, 12, 3, clock=lambda: float(next(ticks)))
    assert drafting.check_ms == [1000.0] * 4
    assert np.all(drafting.agreement(SPACE.largest()))
    found = drafting.plan(SPACE.largest())
    assert found.acceptance == 1.0
    assert found.speedup <= 1.0 + 1e-9  # a draft as dear as the whole gains nothing


def test_transformers_accepts_what_was_counted_and_writes_the_same_text(model, prompts):
    for draft in (dropped(1), SPACE.smallest()):
        drafting = Drafting(model, prompts, 20, 4)
        found = measured(model, draft, 4, prompts, 20)
        assert found["identical"]
        expected = rounds(drafting.agreement(draft), 4)
        assert found["full_passes_a_token"] * found["tokens"] == pytest.approx(expected.rounds, abs=len(prompts))
        assert found["acceptance"] * found["proposals"] == pytest.approx(expected.accepted, abs=len(prompts))


SMALL = ("speculate={evaluations: 6, prompts: 2, prompt_tokens: 8, new_tokens: 8, longest: 3}",)


def test_the_verb_finds_drafts_and_says_what_they_did(copied, llmnas):
    done = llmnas("speculate", copied.config, "--run-dir", copied.folder, "--set", *SMALL)
    assert done.code == 0, done.err
    assert "the same text as the whole network" in " ".join(done.out.split())
    result = json.loads((copied.folder / "speculate" / "result.json").read_text())
    assert result["measured"]["identical"]
    speeds = [draft["speedup"] for draft in result["drafts"]]
    assert speeds == sorted(speeds, reverse=True)
    assert llmnas("speculate", copied.config, "--run-dir", copied.folder, "--set", *SMALL).code == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("speculate.new_tokens=60", ["speculate.new_tokens", "max_seq = 64"]),
        ("speculate={prompt_tokens: 40, new_tokens: 8}", ["speculate.prompt_tokens", "train.seq_len = 32"]),
        (
            "speculate={prompts: 9000, prompt_tokens: 8, new_tokens: 8}",
            ["speculate.prompts = 9000, and as many to report on", "validation"],
        ),
    ],
)
def test_texts_that_do_not_fit_are_refused(copied, llmnas, change, words):
    done = llmnas("speculate", copied.config, "--run-dir", copied.folder, "--set", change)
    assert done.code == 2
    assert all(word in done.complaint for word in words), done.complaint
