"""Generation of our own class: from a cache, while budgets change, within the positions; and what saving keeps."""

import threading

import pytest
import torch
from strategies import random_tokens, scrambled
from test_elastic import FULL, SMALL, SPACE, TABLE, TWO, params
from test_modeling import ATTENTION, BASE, ZOO, greedy, shell
from transformers import DynamicCache

from llmnas.export.modeling_llmnas import LlmnasForCausalLM
from llmnas.export.own import own_config
from llmnas.space import FixedShape
from llmnas.supernet import extract

GREEDY = {"do_sample": False, "eos_token_id": -1}


@pytest.fixture(scope="module")
def supernet():
    return scrambled(SPACE).eval()


@pytest.fixture
def model(supernet):
    return LlmnasForCausalLM(own_config(supernet, None, subnetworks=[one.to_dict() for one in TABLE]), supernet).eval()


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@pytest.mark.parametrize("arch", [ZOO, ATTENTION], ids=["recurrent", "attention"])
def test_going_on_from_a_returned_cache_gives_the_text_without_one(arch, name):
    inner = scrambled(FixedShape(BASE, arch)).eval()
    model, tokens, more = shell(inner), random_tokens(BASE, 2, 7), random_tokens(BASE, 2, 4, seed=3)
    first = model.generate(tokens, max_new_tokens=6, return_dict_in_generate=True, **GREEDY)
    read = []
    model.register_forward_pre_hook(lambda _, __, given: read.append(given["input_ids"].shape[1]), with_kwargs=True)
    longer = torch.cat([first.sequences, more], dim=1)
    found = model.generate(longer, max_new_tokens=8, **{name: first.cache}, **GREEDY)
    assert torch.equal(found, greedy(inner, longer, 8))
    assert read == [1 + 4] + [1] * 7, "what the cache holds is not read again"


def test_a_cache_of_another_kind_and_two_caches_are_refused(model):
    tokens = random_tokens(SPACE.base, 1, 5)
    with torch.no_grad():
        own = model(tokens, use_cache=True).cache
    with pytest.raises(ValueError, match="two names of one thing"):
        model(tokens, cache=own, past_key_values=own)
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="is a DynamicCache; give what an earlier call"):
            call(tokens, past_key_values=DynamicCache())


class AtToken:
    """A logits processor that does something while a text is generated, and changes no logit."""

    def __init__(self, length, action):
        self.length, self.action = length, action

    def __call__(self, ids, scores):
        if ids.shape[1] == self.length:
            self.action()
        return scores


def alone(supernet, arch, tokens, steps):
    return greedy(extract(supernet, arch).eval(), tokens, steps)


def test_a_budget_that_changes_while_a_text_is_generated_counts_for_the_next_one(model, supernet):
    tokens = random_tokens(SPACE.base, 1, 5)
    switch = AtToken(8, lambda: model.set_budget(params=params(SMALL)))
    found = model.generate(tokens, max_new_tokens=8, logits_processor=[switch], **GREEDY)
    assert torch.equal(found, alone(supernet, FULL, tokens, 8))
    assert model.arch == SMALL
    assert torch.equal(model.generate(tokens, max_new_tokens=8, **GREEDY), alone(supernet, SMALL, tokens, 8))


def test_threads_with_budgets_of_their_own_do_not_meet(model, supernet):
    """Both are in the middle of their text, each between the other's tokens, while a third sets budgets."""
    tokens, meet, found = random_tokens(SPACE.base, 1, 5), threading.Barrier(2, timeout=300), {}

    def serve(arch):
        model.set_budget(params=params(arch))
        waits = [AtToken(length, meet.wait) for length in range(6, 13)]
        found[arch] = model.generate(
            tokens, max_new_tokens=8, logits_processor=waits, budget={"params": params(arch)}, **GREEDY
        )

    threads = [threading.Thread(target=serve, args=(arch,)) for arch in (FULL, SMALL)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {arch: text.tolist() for arch, text in found.items()} == {
        arch: alone(supernet, arch, tokens, 8).tolist() for arch in (FULL, SMALL)
    }


def test_an_assistant_and_its_model_keep_their_networks_while_budgets_change(supernet):
    inner = scrambled(FixedShape(BASE, ATTENTION)).eval()
    model, tokens = shell(inner), random_tokens(BASE, 1, 5)
    first = ATTENTION.layers[0]
    draft = model.sharing(type(ATTENTION)(ATTENTION.hidden_size, (first, None)))

    def change():
        model.arch, draft.arch = draft.arch, model.arch

    settings = {"max_new_tokens": 10, "attention_mask": torch.ones_like(tokens), **GREEDY}
    seen = []
    switch = [AtToken(length, lambda: seen.append(change())) for length in range(6, 10)]
    found = model.generate(tokens, assistant_model=draft, logits_processor=switch, **settings)
    assert torch.equal(found, greedy(inner, tokens, 10))
    assert seen


def test_saving_keeps_the_budget_and_the_positions(model, tmp_path):
    model.set_budget(params=params(TWO))
    model.config.max_position_embeddings = 24
    model.save_pretrained(tmp_path / "one")
    again = LlmnasForCausalLM.from_pretrained(tmp_path / "one")
    assert (again.arch, again.config.max_position_embeddings) == (TWO, 24)
    assert not again.table_is_stale()
    tokens = random_tokens(SPACE.base, 1, 6)
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)
        assert torch.equal(again(tokens).logits, model(tokens, arch=TWO).logits)
    again.set_budget(params=1e9)
    assert again.config.active is None
    view = again.sharing(SMALL)
    assert (view.arch, again.arch) == (SMALL, FULL)
    view.save_pretrained(tmp_path / "two")
    assert LlmnasForCausalLM.from_pretrained(tmp_path / "two").arch == SMALL


def test_texts_beyond_the_positions_are_refused_before_a_token_is_computed(model):
    longest = SPACE.base.max_seq
    tokens, asked = random_tokens(SPACE.base, 1, longest + 1), []
    model.register_forward_pre_hook(lambda *_: asked.append(1))
    with pytest.raises(ValueError, match=r"33 tokens and 3 new ones, max_position_embeddings is 32.*room for 0"):
        model.generate(tokens, max_new_tokens=3)
    with pytest.raises(ValueError, match=r"30 tokens and 3 new ones, .*room for 2; cut the prompt or ask for fewer"):
        model.generate(tokens[:, :30], max_new_tokens=3)
    assert not asked
    assert model.generate(tokens[:, :30], max_new_tokens=2, **GREEDY).shape[1] == longest
    with pytest.raises(ValueError, match="33 tokens, max_position_embeddings is 32; cut the text, or set config"):
        model(tokens)
    with torch.no_grad():
        cache = model(tokens[:, :30], use_cache=True).cache
        with pytest.raises(ValueError, match="33 tokens, max_position_embeddings is 32"):
            model(tokens[:, 30:], cache=cache)
        model.config.max_position_embeddings = longest + 1
        assert model(tokens).logits.shape[1] == longest + 1
