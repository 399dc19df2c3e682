"""What AdamW and Muon move in a step, against the contracts in plain torch."""

import pytest
import torch
from plain_optimizers import Masked, Muon, masks
from pydantic import ValidationError
from test_trainer import MIXED, NOTHING_PERSISTS, settings_of
from train_script import SEQUENCES, SPACE

from llmnas.errors import UserError
from llmnas.space import FixedShape
from llmnas.supernet import Transformer
from llmnas.train.engine import Engine, build, start_processes
from llmnas.train.sampling import OneNetwork, SupernetSampler
from llmnas.train.schedule import learning_rate
from llmnas.train.trainer import train

UNDECAYED = ("norm", "bias", "embedding", "head", "lower")


def decays(name):
    return not name.removesuffix(".weight").endswith(UNDECAYED)


def trained(space, settings, sampler=None):
    model = Transformer(space, seed=0)
    sampler = sampler or SupernetSampler(space, None, settings.sampler, seed=0)
    train(model, sampler, SEQUENCES, settings, start_processes())
    return model


def reference(space, settings, scope=None):
    """`scope`: of Muon; None for AdamW alone. Returns the model and whether an element was never used."""
    model = Transformer(space, seed=0)
    adam, muon = Masked(model, decays), Muon(model, scope) if scope else None
    sampler = SupernetSampler(space, None, settings.sampler, seed=0)
    unused = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    for step in range(settings.steps):
        networks = sampler.networks(step)
        model.zero_grad()
        for i, arch in enumerate(networks):
            first = (step * len(networks) + i) * settings.batch_size
            batch = torch.from_numpy(SEQUENCES.batch(first, settings.batch_size))
            out = model(batch[:, :-1], arch, targets=batch[:, 1:], balance_weight=0.01, z_weight=1e-3)
            (out.loss / len(networks)).backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], settings.grad_clip)
        rate = learning_rate(step, settings)
        by_adam = [name for name, _ in model.named_parameters() if not (muon and muon.is_matrix(name))]
        adam.step(networks, rate, settings.weight_decay, only=by_adam)
        if muon:
            muon.step(networks, rate, settings.weight_decay)
        for name, used in masks(model, networks).items():
            unused[name] &= ~used
    return model, unused


def error(model, expected, space):
    first = dict(Transformer(space, seed=0).named_parameters())
    pairs = [(p.detach(), q.detach(), first[n].detach()) for (n, p), q in
             zip(model.named_parameters(), expected.parameters(), strict=True)]  # fmt: skip
    wrong = sum(float((p - q).double().square().sum()) for p, q, _ in pairs)
    return (wrong / sum(float((q - w).double().square().sum()) for _, q, w in pairs)) ** 0.5


STEP = {"steps": 6, "weight_decay": 1.0, "grad_clip": 0.1, "lr": 1e-2, "warmup": 0.3}
SAMPLERS = {
    "single": {"kind": "single", "anchor_every": 0},
    "uniform": {"kind": "uniform", "random": 3},
    "sandwich": {"kind": "sandwich"},
}


@pytest.mark.parametrize("space", [SPACE, MIXED], ids=["dense", "mixed"])
@pytest.mark.parametrize("kind", ["single", "uniform"])
def test_active_adamw_is_its_contract_in_plain_torch(space, kind):
    settings = settings_of(**STEP, sampler=SAMPLERS[kind], update="active")
    model, (expected, unused) = trained(space, settings), reference(space, settings)
    assert error(model, expected, space) <= 1e-3
    first = dict(Transformer(space, seed=0).named_parameters())
    never = {name: p for name, p in model.named_parameters() if unused[name].any()}
    assert never
    assert all(torch.equal(p[unused[name]], first[name][unused[name]]) for name, p in never.items())
    assert error(trained(space, settings.model_copy(update={"update": "all"})), expected, space) > 0.05


@pytest.mark.parametrize("scope", ["slice", "whole"])
@pytest.mark.parametrize(
    ("space", "kind"),
    [
        pytest.param(SPACE, "single", id="dense"),
        pytest.param(MIXED, "uniform", id="mixed", marks=pytest.mark.full),  # a minute for either scope
    ],
)
def test_muon_is_its_contract_matrix_by_matrix(space, kind, scope):
    """Every step is clipped; heads are rows of one matrix, experts matrices of their own; AdamW has the rest."""
    settings = settings_of(**STEP, sampler=SAMPLERS[kind], update="active", optimizer="muon", muon={"scope": scope})
    model, (expected, _) = trained(space, settings), reference(space, settings, scope)
    assert error(model, expected, space) <= 1e-3
    other = "whole" if scope == "slice" else "slice"
    changed = settings.model_copy(update={"muon": settings.muon.model_copy(update={"scope": other})})
    assert error(trained(space, changed), expected, space) > 0.05


@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon"}, {"zero_stage": 2}], ids=str)
def test_a_network_trained_alone_is_the_same_bit_for_bit(changes):
    alone = FixedShape(SPACE.base, SPACE.middle().compact())
    sampler = OneNetwork(alone.envelope)
    scopes = [{"scope": "slice"}, {"scope": "whole"}] if "optimizer" in changes else [{}, {}]
    (first, second) = (
        trained(alone, settings_of(steps=4, update=update, muon=scope, **changes), sampler).state_dict()
        for update, scope in zip(("active", "all"), scopes, strict=True)
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_active_blocks_of_flat_partitions_are_those_of_the_weights(stage):
    """One process; `test_two_processes.py` cuts weights in two."""
    settings = settings_of(**STEP, sampler=SAMPLERS["uniform"], update="active")
    expected = trained(MIXED, settings)
    more = {"zero_stage": stage} | ({"deepspeed": NOTHING_PERSISTS} if stage == 3 else {})
    processes = start_processes()
    model = build(MIXED, 0, settings.model_copy(update=more), processes)
    sampler = SupernetSampler(MIXED, None, settings.sampler, seed=0)
    train(model, sampler, SEQUENCES, settings.model_copy(update=more), processes)
    assert error(model, expected, MIXED) <= 1e-3


@pytest.mark.parametrize("stage", [1, pytest.param(2, marks=pytest.mark.full), pytest.param(3, marks=pytest.mark.full)])
def test_master_weights_in_fp32_stay_where_no_network_used_them(stage):
    """bf16: DeepSpeed has another optimizer around ours at stage 1."""
    settings = settings_of(**STEP, sampler=SAMPLERS["single"], update="active", dtype="bf16", zero_stage=stage)
    sampler = SupernetSampler(SPACE, None, settings.sampler, seed=0)
    networks = [arch for step in range(settings.steps) for arch in sampler.networks(step)]
    first = Transformer(SPACE, seed=0)
    used, before = masks(first, networks), {name: p.detach().bfloat16() for name, p in first.named_parameters()}
    for update in ("active", "all"):
        model = trained(SPACE, settings.model_copy(update={"update": update}))
        moved = {name: p.detach() != before[name] for name, p in model.named_parameters()}
        assert all(moved[name][mask].float().mean() > 0.5 for name, mask in used.items() if name.endswith("up.weight"))
        assert any((moved[name] & ~mask).any() for name, mask in used.items()) == (update == "all")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"muon": {"scale": 0}}, r"muon.scale\n.*greater than 0"),
        ({"muon": {"scale": 0.3}}, "muon.scale does nothing with optimizer: adamw; set optimizer: muon"),
        ({"optimizer": "muon", "zero_stage": 1}, "optimizer: muon needs zero_stage: 0, got 1: stages 1 to 3 cut"),
        ({"optimizer": "sgd"}, "'adamw' or 'muon'"),
        ({"update": "used"}, "'all' or 'active'"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        settings_of(**given)


def test_a_deepspeed_file_that_sets_another_optimizer_is_refused(tmp_path):
    file = tmp_path / "own.json"
    file.write_text('{"optimizer": {"type": "Adam"}}')
    with pytest.raises(UserError, match=r"own.json: optimizer is decided by llmnas \(train.optimizer, train.update, "):
        Engine(Transformer(SPACE), settings_of(optimizer="muon", deepspeed=str(file)), start_processes())
