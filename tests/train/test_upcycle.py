"""A dense network becomes a mixture that computes the same; then its experts go their own ways."""

from dataclasses import replace

import pytest
import torch
from glass import SMALL, glass, speech
from train_script import SEQUENCES, SETTINGS

from llmnas.errors import UserError
from llmnas.space import Architecture, FixedShape, LayerSpec, SearchSpace
from llmnas.space.architecture import BaseModel
from llmnas.supernet import Transformer, extract
from llmnas.train.engine import start_processes
from llmnas.train.sampling import OneNetwork
from llmnas.train.trainer import train
from llmnas.train.upcycle import upcycle
from llmnas.train.warmstart import Pretrained, warm_start

BASE = BaseModel(vocab_size=64, rope_dim=8)
DENSE = Architecture(32, (LayerSpec(1, 2, 8, 32),) * 2)


@pytest.fixture(scope="module")
def trained():
    """A dense network that has learnt something."""
    model = Transformer(FixedShape(BASE, DENSE), seed=0)
    settings = SETTINGS.model_copy(update={"steps": 40, "save_every": 1000})
    train(model, OneNetwork(DENSE), SEQUENCES, settings, start_processes())
    return Pretrained(BASE, DENSE, {name: value.detach() for name, value in model.state_dict().items()})


def mixture(pretrained, ffn_size=None, experts=4, top_k=2, router="softmax", norm=True):
    layers = tuple(
        replace(spec, experts=experts, top_k=top_k, ffn_size=ffn_size or spec.ffn_size)
        for spec in pretrained.arch.layers
    )
    base = replace(pretrained.base, router=router, norm_top_k=norm)
    model = Transformer(FixedShape(base, replace(pretrained.arch, layers=layers)), seed=1)
    warm_start(model, upcycle(pretrained, model))
    return model


def logits(model, arch=None):
    tokens = torch.from_numpy(SEQUENCES.fixed(4)[:, :-1])
    with torch.no_grad():
        return model(tokens, arch)


@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("ffn_size", [32, 40])
def test_the_mixture_computes_what_the_dense_network_did(trained, router, top_k, ffn_size):
    dense = Transformer(FixedShape(BASE, DENSE))
    warm_start(dense, trained)
    model = mixture(trained, ffn_size, top_k=top_k, router=router)
    assert logits(dense).std() > 0.1
    torch.testing.assert_close(logits(model), logits(dense), rtol=1e-4, atol=1e-4)


def test_expert_0_stays_the_dense_network(trained):
    dense = Transformer(FixedShape(BASE, DENSE))
    warm_start(dense, trained)
    model = mixture(trained)
    torch.testing.assert_close(logits(extract(model, DENSE)), logits(dense), rtol=1e-4, atol=1e-4)


def test_copies_part_when_they_are_trained(trained):
    model = mixture(trained)
    settings = SETTINGS.model_copy(update={"steps": 12, "save_every": 1000})
    logged = {}
    train(model, OneNetwork(model.envelope), SEQUENCES, settings, start_processes(), log=logged.setdefault)
    gate = model.layers[0].ffn.gate.weight.detach()
    assert min((gate[a] - gate[b]).abs().max() for a in range(4) for b in range(a)) > 1e-3
    fresh = Transformer(FixedShape(model.base, model.envelope), seed=1)
    begins = logged[1]["train_loss"]
    tokens = torch.from_numpy(SEQUENCES.batch(0, 4))
    with torch.no_grad():
        assert begins < float(fresh(tokens[:, :-1], targets=tokens[:, 1:]).cross_entropy) - 0.3


def test_real_weights_become_a_mixture():
    """341 channels are no multiple of 4: three that write nothing are added."""
    dense, batches = glass(), speech()[:1]
    space = SearchSpace.from_dict({
        **SMALL, "base": {**SMALL["base"], "norm_top_k": True}, "ffn_size": [172, 344], "experts": [1, 4],
        "top_k": [1, 2],
    })  # fmt: skip
    model = Transformer(space)
    warm_start(model, upcycle(Pretrained(dense.base, dense.envelope, dense.state_dict()), model))
    with torch.no_grad():
        expected = dense(batches[0][:, :-1])
        found = model(batches[0][:, :-1])
        alone = model(
            batches[0][:, :-1], SearchSpace.from_dict({**space.model_dump(), "experts": 1, "top_k": 1}).largest()
        )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"norm": False}, "base.norm_top_k must be true"),
        ({"ffn_size": 16}, "layer 0: the largest ffn_size of the space is 16, less than the dense model's 32"),
    ],
)
def test_what_would_change_the_function_is_refused(trained, changes, complaint):
    with pytest.raises(UserError, match=complaint):
        mixture(trained, **changes)
