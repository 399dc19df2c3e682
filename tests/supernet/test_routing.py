"""What is said of routers, against a loop over tokens; likeness where it is known."""

import pytest
import torch
from strategies import scrambled

from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec
from llmnas.supernet.routing import study_routers

SPEC = LayerSpec(1, 1, 4, 8, experts=4, top_k=2)
ARCH = Architecture(8, (SPEC, LayerSpec(1, 1, 4, 8), SPEC))
BATCHES = [torch.arange(24).view(2, 12) % 11, torch.arange(24, 48).view(2, 12) % 11]


@pytest.fixture
def model():
    return scrambled(FixedShape(BaseModel(11), ARCH), 3)


def inputs(model):
    """What reaches each layer's feed-forward."""
    found = {}
    for i, layer in enumerate(model.layers):
        layer.ffn.register_forward_hook(
            lambda m, args, out, i=i: found.setdefault(i, []).append(args[0].flatten(0, -2))
        )
    with torch.no_grad():
        for batch in BATCHES:
            model(batch)
    return {i: torch.cat(parts) for i, parts in found.items()}


def test_figures_are_those_of_a_loop_over_tokens(model):
    studies = study_routers(model, BATCHES, ARCH)
    assert list(studies) == [0, 2]
    for i, x in inputs(model).items():
        if i not in studies:
            continue
        ffn, found = model.layers[i].ffn, studies[i]
        scores = (x @ ffn.router.weight.T).softmax(-1).detach()
        load, energy, first, entropy = torch.zeros(4), torch.zeros(4), 0.0, 0.0
        for token, p in zip(x, scores, strict=True):
            chosen = (p + ffn.balance).topk(2).indices.tolist()
            for e in chosen:
                gate, up, down = (getattr(ffn, name).weight[e] for name in ("gate", "up", "down"))
                out = down @ (torch.nn.functional.silu(gate @ token) * (up @ token))
                load[e] += 1
                energy[e] += (p[e] * out.detach()).square().sum()
            first += float(max(p[e] for e in chosen) / sum(p[e] for e in chosen))
            entropy -= float((p * p.log()).sum())
        torch.testing.assert_close(found.load, load / load.sum())
        torch.testing.assert_close(found.contribution, energy.sqrt() / energy.sqrt().sum(), rtol=1e-4, atol=1e-5)
        assert found.mass.tolist() == pytest.approx([first / len(x), 1.0], rel=1e-5)
        assert found.entropy == pytest.approx(entropy / len(x), rel=1e-5)


def test_copies_are_alike_and_rotated_copies_only_by_cka(model):
    ffn = model.layers[0].ffn
    rotation = torch.linalg.qr(torch.randn(8, 8)).Q
    with torch.no_grad():
        for name in ("gate", "up", "down"):
            weight = getattr(ffn, name).weight
            weight[1] = weight[0]
            weight[2] = weight[0]
        ffn.down.weight[2] = rotation @ ffn.down.weight[0]
    found = study_routers(model, BATCHES, ARCH)[0]
    assert found.cosine[0, 1].item() == pytest.approx(1, abs=1e-5)
    assert found.cka[0, [1, 2]].tolist() == pytest.approx([1, 1], abs=1e-5)
    assert found.cosine[0, 2].item() < 0.9
    assert found.cka[0, 3].item() < 0.95
    torch.testing.assert_close(found.cosine.diagonal(), torch.ones(4))
    torch.testing.assert_close(found.cka.diagonal(), torch.ones(4))


def test_without_text_or_routers():
    model = scrambled(FixedShape(BaseModel(11), Architecture(8, (LayerSpec(1, 1, 4, 8),))))
    assert study_routers(model, BATCHES, model.envelope) == {}
    with pytest.raises(ValueError, match="at least one batch"):
        study_routers(model, [], model.envelope)
