"""The original as teacher: aims of blocks, an exact divergence, a student that comes nearer; and refusals."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import ValidationError
from train_script import SEQUENCES, SETTINGS, SPACE

from llmnas.nn.loss import block_distance
from llmnas.supernet import Transformer, extract
from llmnas.train.distill import Original
from llmnas.train.engine import start_processes
from llmnas.train.sampling import OneNetwork
from llmnas.train.settings import DistillSettings, TrainSettings
from llmnas.train.trainer import train

VOCAB = SPACE.base.vocab_size
BOTH = DistillSettings(source="original", weight=1.0, top_k=VOCAB, blocks=1.0)
TOKENS = torch.arange(24).view(2, 12) % VOCAB


def settings_of(**changes):
    return TrainSettings.model_validate({**SETTINGS.model_dump(), **changes})


def streams(model, arch):
    """The residual stream after every layer, by hooks: an independent way to `outputs`."""
    seen = {}
    hooks = [
        layer.register_forward_hook(lambda _m, _a, out, i=i: seen.__setitem__(i, out[0]))
        for i, layer in enumerate(model.layers)
    ]
    model.hidden_states(TOKENS, arch)
    for hook in hooks:
        hook.remove()
    return seen


def test_the_whole_network_is_its_own_aim():
    model = Transformer(SPACE, seed=1)
    whole = model.envelope
    signal = Original(model, BOTH)(TOKENS, whole, None)
    for i, out in streams(model, whole).items():
        torch.testing.assert_close(signal.blocks[i], out)
    expected = F.softmax(model(TOKENS), -1).flatten(0, 1)
    found = torch.zeros_like(expected).scatter(1, signal.teacher.tokens, signal.teacher.probability)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    out = model(TOKENS, targets=TOKENS, teacher=signal.teacher, teacher_weight=1.0, block_aims=signal.blocks,
                block_weight=1.0)  # fmt: skip
    assert float(out.loss) == pytest.approx(0.0, abs=1e-5)


def test_a_student_that_skips_layers_aims_at_what_the_next_kept_layer_reads():
    model = Transformer(SPACE, seed=1)
    whole = model.envelope
    depth = len(whole.layers)
    assert depth >= 3
    kept = (0, depth - 1)
    arch = SPACE.build(whole.hidden_size, {i: whole.layers[i] for i in kept})
    everything = streams(model, whole)
    signal = Original(model, BOTH)(TOKENS, arch, None)
    assert signal.blocks.keys() == set(kept)
    torch.testing.assert_close(signal.blocks[0], everything[depth - 2])
    torch.testing.assert_close(signal.blocks[depth - 1], everything[depth - 1])
    alone = Original(model, BOTH, kept)(TOKENS, arch.compact(), None)
    torch.testing.assert_close(alone.blocks[0], everything[depth - 2])
    torch.testing.assert_close(alone.blocks[1], everything[depth - 1])


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_block_distance_is_its_formula(kind):
    student, teacher = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 6, requires_grad=True)
    found = block_distance(student, teacher, kind)
    rows = []
    for s, t in zip(student.double().view(-1, 4), teacher.double()[..., :4].reshape(-1, 4), strict=True):
        rows.append(((s - t) ** 2).sum() / (t**2).sum() if kind == "mse" else 1 - (s @ t) / (s.norm() * t.norm()))
    torch.testing.assert_close(found.double(), torch.stack(rows).mean(), rtol=1e-5, atol=1e-6)
    found.backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("stage", [0, 3])
def test_a_student_comes_nearer_and_the_teacher_stays(stage):
    original = Transformer(SPACE, seed=1)
    with torch.no_grad():
        original.embedding.weight.mul_(10)  # opinions to learn: fresh weights find every token about as likely
    arch = SPACE.smallest()
    kept = [i for i, _ in arch.kept]
    distill = {"source": "original", "weight": 1.0, "top_k": VOCAB, "blocks": 0.5, "block_loss": "cosine"}
    settings = settings_of(
        steps=60, distill=distill, lr=3e-3, weight_decay=0.0, zero_stage=stage, sampler={}, shared_batch=False
    )
    student = extract(original, arch)
    before = {name: value.clone() for name, value in original.state_dict().items()}

    seen = torch.from_numpy(SEQUENCES.batch(0, 16))[:, :-1]

    def divergence():
        with torch.no_grad():
            return float(F.kl_div(student(seen).log_softmax(-1), original(seen).softmax(-1), reduction="batchmean"))

    start = divergence()
    train(student, OneNetwork(student.envelope), SEQUENCES, settings, start_processes(),
          guide=Original(original, settings.distill, kept))  # fmt: skip
    assert divergence() < 0.7 * start
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"blocks": 1.0}, "distill.blocks needs source: original"),
        ({"block_loss": "cosine"}, "block_loss does nothing"),
        ({"source": "original"}, "does nothing without distill.weight or distill.blocks"),
    ],
)
def test_what_does_nothing_is_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        DistillSettings.model_validate(values)


def test_a_teacher_is_given_exactly_where_it_is_asked_for():
    model = Transformer(SPACE, seed=0)
    with pytest.raises(ValueError, match=r"distill.source: largest"):
        train(
            model, OneNetwork(model.envelope), SEQUENCES, settings_of(), start_processes(), guide=Original(model, BOTH)
        )
    asked = settings_of(distill=BOTH.model_dump(), sampler={}, shared_batch=False)
    with pytest.raises(ValueError, match=r"distill.source: original, guide: None"):
        train(model, OneNetwork(model.envelope), SEQUENCES, asked, start_processes())
