"""Tuning an elastic checkpoint: a sub-network a step keeps them all, and a table that no longer holds says so."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from strategies import scrambled
from tiny import SPEECHES
from tokenizers import Tokenizer

from llmnas.cost import count_params
from llmnas.export.elastic_training import Draws, checksum, validation_loss
from llmnas.export.modeling_llmnas import LlmnasForCausalLM
from llmnas.export.own import own_config
from llmnas.export.subnetworks import Subnetwork
from llmnas.space import Architecture, LayerSpec, SearchSpace
from llmnas.supernet import Transformer, extract

SPACE = SearchSpace.from_dict({
    "base": {"vocab_size": 300, "max_seq": 32}, "layers": 3, "hidden_size": [16, 32], "depth": [1, 2, 3],
    "kv_heads": [1, 2], "queries_per_group": 1, "head_dim": 8, "ffn_size": [16, 32],
})  # fmt: skip
WIDE, NARROW = LayerSpec(2, 1, 8, 32), LayerSpec(1, 1, 8, 16)
ARCHS = (
    Architecture(32, (WIDE,) * 3),
    Architecture(32, (WIDE, None, WIDE)),
    Architecture(16, (NARROW,) * 3),
    Architecture(16, (NARROW, None, None)),
)


def elastic(seed=0):
    """A supernet that has learned nothing yet, with its table."""
    supernet = Transformer(SPACE, seed=seed)
    table = [
        Subnetwork(arch, {"val_loss": 5.7, "params": float(count_params(arch, SPACE.base).total), "memory_bytes": 1.0})
        for arch in ARCHS
    ]
    return LlmnasForCausalLM(own_config(supernet, None, subnetworks=[one.to_dict() for one in table]), supernet)


@pytest.fixture(scope="module")
def texts(tokenizer_path):
    """[rows, 32] tokens of a speech: to train on, and held out."""
    file = min(SPEECHES.glob("*.txt"), key=lambda file: (file.stat().st_size, file.name))
    ids = torch.tensor(Tokenizer.from_file(str(tokenizer_path)).encode(file.read_text(encoding="utf-8")).ids)
    rows = ids[: len(ids) // 32 * 32].view(-1, 32)
    return rows[:-8], rows[-8:]


def tuned(model, rows, steps):
    """What any trainer does: the loss of the model on a batch, a step of AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        batch = rows[torch.randint(len(rows), (8,), generator=torch.Generator().manual_seed(step))]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def losses(model, rows):
    return [validation_loss(model.model, arch, rows) for arch in ARCHS]


def test_a_subnetwork_a_step_tunes_them_all_where_a_plain_trainer_ruins_the_others(texts):
    train, held_out = texts
    start = tuned(elastic().train_elastic(), train, 40)  # as a supernet is trained
    weights = start.state_dict()

    def again(**how):
        model = elastic()
        model.load_state_dict(weights)
        return losses(tuned(model.train() if how["plain"] else model.train_elastic(seed=1), train, 40), held_out)

    before, plain, drawn = losses(start, held_out), again(plain=True), again(plain=False)
    assert plain[0] < before[0]
    assert plain[-1] > before[-1], "the smallest is ruined"
    assert all(after < earlier for after, earlier in zip(drawn, before, strict=True))


def test_every_row_is_drawn_equally_often_by_seed_and_step_alone():
    table = [Subnetwork(arch, {}) for arch in ARCHS]
    one, other = Draws(table, 3), Draws(table, 3)
    drawn = [one.next() for _ in range(40)]
    assert drawn == [other.next() for _ in range(40)]
    assert {arch: drawn.count(arch) for arch in ARCHS} == dict.fromkeys(ARCHS, 10)
    assert drawn != [Draws(table, 4).next() for _ in range(40)]


def test_a_training_forward_is_that_of_the_drawn_network_and_evaluation_that_of_the_default(texts):
    model, tokens = elastic().train_elastic(seed=5), texts[1][:2]
    wanted = Draws(model.subnetworks, 5)
    for _ in range(6):
        small = extract(model.model, wanted.next())
        expected = F.cross_entropy(small(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        torch.testing.assert_close(model(tokens, labels=tokens).loss, expected)
    largest, inner = ARCHS[0], model.model
    assert torch.equal(model(tokens, arch=largest).logits, inner(tokens, largest)), "named ones are not replaced"
    assert torch.equal(model.eval()(tokens).logits, inner(tokens, largest))
    assert torch.equal(model.train_elastic(seed=None)(tokens).logits, inner(tokens, largest))
    single = scrambled(SPACE)
    with pytest.raises(ValueError, match="holds one network"):
        LlmnasForCausalLM(own_config(single, None), single).train_elastic()


@pytest.fixture
def loaded(tmp_path):
    elastic().save_pretrained(tmp_path / "first")
    return LlmnasForCausalLM.from_pretrained(tmp_path / "first")


def change_in_place(model):
    with torch.no_grad():
        model.model.layers[1].ffn.up.weight[0, 0] += 1e-3


def change_behind_autograd(model):
    model.model.norm.data[3] = 0.5


@pytest.mark.parametrize("change", [change_in_place, change_behind_autograd])
def test_any_change_of_a_weight_marks_the_table(loaded, texts, tmp_path, change):
    assert not loaded.table_is_stale()
    change(loaded)
    loaded.save_pretrained(tmp_path / "second")
    again = LlmnasForCausalLM.from_pretrained(tmp_path / "second")
    assert again.config.table_stale
    with pytest.warns(UserWarning, match="weights changed since the losses"):
        again.set_budget(params=count_params(ARCHS[3], SPACE.base).total)
    table = again.measure_losses(texts[1])
    assert [one.metrics["val_loss"] for one in table] == sorted(losses(again, texts[1]))
    assert again.arch == ARCHS[3], "what ran by default still does"
    again.save_pretrained(tmp_path / "third")
    third = LlmnasForCausalLM.from_pretrained(tmp_path / "third")
    assert not third.config.table_stale
    assert (third.subnetworks, third.arch) == (table, ARCHS[3])


def test_saving_what_was_loaded_marks_nothing(loaded, tmp_path):
    loaded.save_pretrained(tmp_path / "second", state_dict=loaded.state_dict())
    assert not LlmnasForCausalLM.from_pretrained(tmp_path / "second").config.table_stale
    for dtype in (torch.bfloat16, torch.float64):
        cast = LlmnasForCausalLM.from_pretrained(tmp_path / "second", dtype=dtype)
        assert not cast.table_is_stale()
        assert checksum(cast.parameters()) != checksum(loaded.parameters())


@pytest.mark.full
def test_the_trainer_of_transformers_trains_them_all(texts, tmp_path):
    from transformers import Trainer, TrainingArguments

    train, held_out = texts
    model = elastic().train_elastic()
    before = losses(model, held_out)
    settings = TrainingArguments(
        tmp_path / "out", max_steps=40, per_device_train_batch_size=8, learning_rate=1e-2, report_to=[], use_cpu=True,
        save_strategy="no", gradient_checkpointing=True,
    )  # fmt: skip
    Trainer(model, settings, train_dataset=[{"input_ids": row, "labels": row} for row in train]).train()
    assert all(after < earlier - 0.5 for after, earlier in zip(losses(model, held_out), before, strict=True))
