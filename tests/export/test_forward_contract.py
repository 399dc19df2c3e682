"""The forward of our own class does what transformers' own class does with the same weights and arguments."""

import pytest
import torch
from stock import stock_model
from strategies import random_tokens, scrambled
from test_modeling import BASE as ZOO_BASE
from test_modeling import CARD, CODED, ZOO, shell
from transformers import DynamicCache

from llmnas.export.hf import write_checkpoint
from llmnas.export.modeling_llmnas import LlmnasForCausalLM
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec

BASE = BaseModel(vocab_size=40, rope_dim=8, max_seq=64, tied=False)
SHAPE = FixedShape(BASE, Architecture(16, (LayerSpec(2, 1, 8, 24),) * 3))
IDS = random_tokens(BASE, 2, 12)


@pytest.fixture(scope="module")
def ours():
    return shell(scrambled(SHAPE).eval())


@pytest.fixture(scope="module")
def llama():
    model = stock_model(scrambled(SHAPE).eval())
    assert type(model).__name__ == "LlamaForCausalLM"
    return model


def alike(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


PADDED = torch.ones(2, 12, dtype=torch.long)
PADDED[1, :5] = 0
BY_MASK = (PADDED.cumsum(1) - 1).masked_fill(PADDED == 0, 1)  # as transformers' generation makes them
PACKED = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3]])
LABELS = IDS.masked_fill(IDS % 3 == 0, -100)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"labels": LABELS},
        {"labels": LABELS, "num_items_in_batch": torch.tensor(7)},
        {"logits_to_keep": 3},
        {"logits_to_keep": torch.tensor([1, 5])},
        {"position_ids": torch.arange(12)[None]},
        {"position_ids": torch.arange(12)[None] + 20},
        {"attention_mask": PADDED},
        {"attention_mask": PADDED, "position_ids": BY_MASK},
        {"attention_mask": torch.ones_like(PADDED), "position_ids": torch.arange(12).expand(2, 12) + 3},
        {"output_hidden_states": True},
        {"output_hidden_states": False, "use_cache": False},
        {"return_dict": False, "labels": LABELS, "use_cache": False},
    ],
    ids=lambda given: " ".join(given) or "plain",
)
def test_every_argument_means_what_it_means_to_transformers(ours, llama, given):
    with torch.no_grad():
        found, wanted = ours(IDS, **given), llama(IDS, **given)
    if given.get("return_dict") is False:
        assert len(found) == len(wanted) == 2
        alike(found[0], wanted[0])
        return
    text = given.get("attention_mask", torch.ones_like(IDS)).bool()
    if "logits_to_keep" in given:
        alike(found.logits, wanted.logits)
    else:
        alike(found.logits[text], wanted.logits[text])
    assert (found.loss is None) == (wanted.loss is None)
    if found.loss is not None:
        alike(found.loss, wanted.loss)
    assert (found.hidden_states is None) == (wanted.hidden_states is None)
    for one, other in zip(found.hidden_states or (), wanted.hidden_states or (), strict=True):
        alike(one, other)


def test_a_packed_row_is_its_texts_one_by_one(ours, llama):
    row = IDS[:1]
    with torch.no_grad():
        found = ours(row, position_ids=PACKED).logits
        alike(found, llama(row, position_ids=PACKED, use_cache=False).logits)
        alone = torch.cat([ours(part).logits for part in row.split([5, 3, 4], dim=1)], dim=1)
    alike(found, alone)


def test_embeddings_may_be_given_instead_of_tokens(ours, llama):
    embedded = ours.get_input_embeddings()(IDS)
    assert torch.equal(embedded, llama.get_input_embeddings()(IDS))
    assert torch.equal(ours.get_input_embeddings().weight, llama.get_input_embeddings().weight)
    with torch.no_grad():
        alike(ours(inputs_embeds=embedded).logits, llama(inputs_embeds=embedded).logits)
        found = ours.generate(inputs_embeds=embedded, max_new_tokens=6, do_sample=False, eos_token_id=-1)
        wanted = llama.generate(inputs_embeds=embedded, max_new_tokens=6, do_sample=False, eos_token_id=-1)
    assert torch.equal(found, wanted)
    for wrong in ({}, {"input_ids": IDS, "inputs_embeds": embedded}):
        with pytest.raises(ValueError, match="give input_ids or inputs_embeds"):
            ours(**wrong)
    with pytest.raises(ValueError, match="are 3 wide, the architecture 16"):
        ours(inputs_embeds=embedded[..., :3])
    with pytest.raises(ValueError, match="cannot be replaced"):
        ours.set_input_embeddings(torch.nn.Embedding(4, 16))


def test_going_on_with_a_cache_and_positions(ours, llama):
    mask, positions = PADDED, BY_MASK
    own, theirs = None, DynamicCache()
    with torch.no_grad():
        for part in (slice(0, 8), slice(8, 9), slice(9, 12)):
            given = {"attention_mask": mask[:, : part.stop], "position_ids": positions[:, part], "use_cache": True}
            found = ours(IDS[:, part], past_key_values=own, **given)
            wanted = llama(IDS[:, part], cache=theirs, **given)
            own, theirs = found.cache, wanted.cache
            alike(found.logits[mask[:, part].bool()], wanted.logits[mask[:, part].bool()])


@pytest.mark.parametrize(
    "positions",
    [[0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12], [0] * 12, [11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]],
)
def test_positions_that_jump_within_a_padded_text_are_refused(ours, positions):
    with pytest.raises(ValueError, match="position_ids: jump within a text"):
        ours(IDS, attention_mask=PADDED.flip(0), position_ids=torch.tensor([positions]))
    with pytest.raises(ValueError, match="position_ids: jump within a text"):
        ours(IDS, use_cache=True, position_ids=torch.tensor([positions]))


def test_positions_that_do_not_follow_those_in_the_cache_are_refused(ours):
    with torch.no_grad():
        cache = ours(IDS[:, :6], position_ids=torch.arange(6)[None] + 4, use_cache=True).cache
        with pytest.raises(ValueError, match="jump within a text"):
            ours(IDS[:, 6:7], position_ids=torch.tensor([[6]]), cache=cache)
        with pytest.raises(ValueError, match="must be given on"):
            ours(IDS[:, 6:7], cache=cache)
        alike(ours(IDS[:, 6:], position_ids=torch.arange(6)[None] + 10, cache=cache).logits, ours(IDS).logits[:, 6:])


def test_what_cannot_be_is_refused_in_words(ours):
    with pytest.raises(ValueError, match="attention weights are never formed"):
        ours(IDS, output_attentions=True)
    with pytest.raises(ValueError, match=r"position_ids: are \[2, 3\], must be \[2, 12\]"):
        ours(IDS, position_ids=torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(TypeError, match="unknown arguments colour"):
        ours(IDS, colour="red")


@pytest.mark.parametrize("arch", [SHAPE.envelope, ZOO], ids=["attention", "every kind"])
def test_gradient_checkpointing_gives_the_same_gradients(arch):
    def gradients(checkpointed):
        model = shell(scrambled(FixedShape(ZOO_BASE, arch))).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        model(IDS, labels=IDS).loss.backward()
        return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


def test_gradients_of_a_frozen_network_reach_its_inputs(ours):
    ours.enable_input_require_grads()
    try:
        for weight in ours.parameters():
            weight.requires_grad_(False)
        states = ours(IDS, output_hidden_states=True).hidden_states
        states[-1].sum().backward()
        assert states[0].requires_grad
    finally:
        ours.requires_grad_(True)
        ours.disable_input_require_grads()


def test_packed_weights_name_what_trains(tmp_path):
    write_checkpoint(scrambled(FixedShape(ZOO_BASE, CODED)).eval(), tmp_path, None, CARD)
    packed = LlmnasForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert packed(IDS, labels=IDS).loss > 0
    with pytest.raises(ValueError, match=r"model.unpacked\(\) has floats, to train on"):
        packed.train()(IDS, labels=IDS)
