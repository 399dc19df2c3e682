"""Loss of windows against plain cross entropy in float64, and what it leaves alone."""

import itertools
import math

import numpy as np
import pytest
import torch

from llmnas.evaluate.quality import quality, window_losses
from llmnas.rng import generator
from llmnas.space import SearchSpace
from llmnas.supernet import Transformer, extract

SPACE = SearchSpace.from_dict(
    {
        "base": {"vocab_size": 61, "qk_norm": True},
        "layers": 3,
        "hidden_size": [16, 24],
        "depth": [1, 2, 3],
        "kv_heads": {"choices": [1, 2], "per_layer": True},
        "queries_per_group": [1, 2],
        "head_dim": 8,
        "ffn_size": {"choices": [16, 40], "per_layer": True},
    }
)
WINDOWS = np.random.default_rng(0).integers(0, 61, (23, 18))


@pytest.fixture(scope="module")
def supernet():
    return Transformer(SPACE, seed=3)


def plain(model, arch, windows):
    """-log p of every token, from the logits in float64, by hand."""
    with torch.no_grad():
        logits = model(torch.from_numpy(windows[:, :-1]), arch).double()
    log_p = logits - torch.logsumexp(logits, -1, keepdim=True)
    return -log_p.gather(-1, torch.from_numpy(windows[:, 1:, None])).squeeze(-1).mean(1).numpy()


@pytest.mark.parametrize("draw", range(4))
def test_equals_plain_cross_entropy(supernet, draw):
    arch = SPACE.sample(generator(draw, "test"))
    np.testing.assert_allclose(window_losses(supernet, arch, WINDOWS), plain(supernet, arch, WINDOWS), rtol=1e-5)


def test_within_documents_each_is_computed_as_if_it_stood_alone(supernet):
    windows = WINDOWS.copy()
    windows[windows == 0] = 1
    windows[:, 6] = windows[:5, 11] = 0
    arch = SPACE.sample(generator(1, "test"))
    expected = []
    for row in windows:
        ends = [0, *(np.flatnonzero(row[:-1] == 0) + 1), len(row) - 1]
        parts = [row[None, a : b + 1] for a, b in itertools.pairwise(ends)]
        expected.append(sum(plain(supernet, arch, part)[0] * (part.shape[1] - 1) for part in parts) / (len(row) - 1))
    np.testing.assert_allclose(window_losses(supernet, arch, windows, eos_id=0), expected, rtol=1e-5)
    assert not np.allclose(window_losses(supernet, arch, windows), expected, rtol=1e-5)


def test_none_is_the_largest(supernet):
    losses = window_losses(supernet, None, WINDOWS)
    np.testing.assert_array_equal(losses, window_losses(supernet, SPACE.largest(), WINDOWS))
    assert losses.dtype == np.float64
    assert losses.shape == (23,)


def test_the_same_alone_as_inside_of_the_supernet(supernet):
    arch = SPACE.sample(generator(9, "test"))
    inside, alone = window_losses(supernet, arch, WINDOWS), window_losses(extract(supernet, arch), None, WINDOWS)
    np.testing.assert_allclose(inside, alone, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 5, 22, 23, 64])
def test_the_same_whatever_the_batches(supernet, batch):
    """Up to the rounding of float32 sums, whose order a matrix product of another size may change."""
    expected = window_losses(supernet, None, WINDOWS)
    np.testing.assert_allclose(window_losses(supernet, None, WINDOWS, batch=batch), expected, rtol=2e-6)


def test_the_order_of_windows_is_kept(supernet):
    order = np.random.default_rng(1).permutation(len(WINDOWS))
    shuffled = window_losses(supernet, None, WINDOWS[order], batch=4)
    np.testing.assert_allclose(shuffled, window_losses(supernet, None, WINDOWS, batch=4)[order], rtol=2e-6)


@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_model_and_the_generator_as_they_were(supernet, training):
    supernet.train(training)
    supernet.embedding.weight.grad = torch.ones_like(supernet.embedding.weight)
    weights = {name: value.clone() for name, value in supernet.state_dict().items()}
    state = torch.get_rng_state()
    window_losses(supernet, SPACE.smallest(), WINDOWS)
    assert supernet.training is training
    assert torch.equal(torch.get_rng_state(), state)
    assert bool((supernet.embedding.weight.grad == 1).all())
    assert all(parameter.requires_grad for parameter in supernet.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in supernet.state_dict().items())
    supernet.embedding.weight.grad = None


def test_forms_of_a_loss():
    """A uniform guess among 8 tokens of 4 bytes each costs 3 bits a token, 0.75 bits a byte."""
    found = quality(math.log(8), bytes_per_token=4)
    assert found == pytest.approx({"val_loss": math.log(8), "perplexity": 8, "bits_per_byte": 0.75})


def test_a_hopeless_loss_stays_a_number():
    assert math.isfinite(quality(1e6, 4.0)["perplexity"])
