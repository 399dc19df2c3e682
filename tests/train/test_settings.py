"""Settings that cannot be trained with cannot be made."""

import pytest
from pydantic import ValidationError

from llmnas.train.settings import SamplerSettings, TrainSettings

SANDWICH = {"kind": "sandwich"}


def test_only_the_steps_have_no_default():
    settings = TrainSettings(steps=3)
    assert settings.sampler == SamplerSettings()
    with pytest.raises(ValidationError, match="steps"):
        TrainSettings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.steps = 4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 0),
        ("steps", 1.5),
        ("batch_size", -8),
        ("seq_len", 0),
        ("lr", 0),
        ("lr", float("inf")),
        ("lr", float("nan")),
        ("warmup", 1),
        ("warmup", -0.1),
        ("lr_floor", 1.1),
        ("weight_decay", -0.1),
        ("betas", (0.9, 1.0)),
        ("betas", (-0.1, 0.95)),
        ("betas", (0.9,)),
        ("grad_clip", 0),
        ("zero_stage", 4),
        ("micro_batch", -1),
        ("skip_limit", 0),
        ("dtype", "fp16"),
        ("log_every", 0),
        ("save_every", 0),
        ("keep", 0),
        ("threads", -1),
        ("sampler", {"kind": "fairest"}),
        ("sampler", {"random": 0}),
        ("sampler", {"anchor_every": -1}),
        ("sampler", {"distribution": "flat"}),
        ("sampler", {"largest": "both"}),
        ("sampler", {"networks": 2}),
        ("distill", {"weight": 1.5}),
        ("distill", {"top_k": 0}),
        ("distill", {"top_k": 5}),  # does nothing without a weight
        ("learning_rate", 1e-3),
    ],
)
def test_bad_values_are_refused_by_name(key, value):
    with pytest.raises(ValidationError) as error:
        TrainSettings.model_validate({"steps": 3, key: value})
    assert error.value.errors()[0]["loc"][0] == key


@pytest.mark.parametrize(
    ("sampler", "shared_batch"), [({"kind": "single"}, True), ({"kind": "uniform"}, True), (SANDWICH, False)]
)
def test_distillation_needs_a_teacher_on_the_same_tokens(sampler, shared_batch):
    wanted = {"steps": 3, "sampler": sampler, "shared_batch": shared_batch}
    with pytest.raises(ValidationError, match=r"needs sampler\.kind: sandwich .* and shared_batch: true"):
        TrainSettings.model_validate({**wanted, "distill": {"weight": 0.5}})
    assert TrainSettings.model_validate({**wanted, "distill": {"weight": 0}}).distill.weight == 0


def test_distillation_in_a_sandwich_of_one_batch():
    assert TrainSettings(steps=3, sampler=SANDWICH, shared_batch=True, distill={"weight": 1}).distill.weight == 1


@pytest.mark.parametrize(("kind", "networks"), [("single", 1), ("uniform", 3), ("sandwich", 5), ("fair", 3)])
def test_networks_per_step(kind, networks):
    drawn = {} if kind == "single" else {"random": 3}
    assert SamplerSettings(kind=kind, **drawn).networks_per_step() == networks
