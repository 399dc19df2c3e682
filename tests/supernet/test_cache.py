"""Reading with a cache, in any pieces, gives what reading at once gives."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import random_tokens, scrambled, spaces_with_members

from llmnas.nn.cache import Cache, Mark
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec, SearchSpace


def single(case):
    """The same, dense and without experts.

    torch's grouped product has no float64 on the CPU; the sign of a low-bit activation that is zero but for rounding
    depends on how many tokens are multiplied at once.
    """
    space, arch = case
    dense = {"experts": 1, "top_k": 1, "shared_experts": 0, "weights": "dense"}
    space = SearchSpace.model_validate({**space.model_dump(), **dense})
    layers = tuple(spec and replace(spec, experts=1, weights="dense") for spec in arch.layers)
    return space, replace(arch, layers=layers)


MIXERS = spaces_with_members(kinds=True).map(single)


@settings(max_examples=12)
@given(MIXERS, st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 3))
def test_any_pieces_give_the_logits_of_the_whole(case, pieces, batch):
    space, arch = case
    model = scrambled(space).double().eval()
    tokens = random_tokens(space.base, batch, sum(pieces))
    cache = model.new_cache(arch, batch, sum(pieces))
    with torch.no_grad():
        whole = model(tokens, arch)
        parts = [model(part, arch, cache=cache) for part in tokens.split(pieces, dim=1)]
    assert cache.length == sum(pieces)
    # rotations are complex64 whatever the model's dtype
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-6, atol=1e-6)


@given(MIXERS)
@settings(max_examples=5)
def test_cache_reads_on_from_a_mark(case):
    space, arch = case
    model = scrambled(space).double().eval()
    first, second = random_tokens(space.base, 2, 7), random_tokens(space.base, 2, 7, seed=1)
    second[:, :4] = first[:, :4]
    cache = model.new_cache(arch, 2, 7)
    with torch.no_grad():
        model(first[:, :4], arch, cache=cache)
        mark = cache.mark()
        model(first[:, 4:], arch, cache=cache)
        cache.back_to(mark)
        found = model(second[:, 4:], arch, cache=cache)
        torch.testing.assert_close(found, model(second, arch)[:, 4:], rtol=1e-6, atol=1e-6)


@given(spaces_with_members())
@settings(max_examples=3)
def test_cache_that_is_full_refuses(case):
    space, arch = case
    model = scrambled(space)
    assume(any(spec.mixer == "attention" for _, spec in arch.kept))
    cache = model.new_cache(arch, 1, 3)
    with torch.no_grad(), pytest.raises(ValueError, match="holds 3 tokens, 4 were read"):
        model(random_tokens(space.base, 1, 4), arch, cache=cache)


def test_a_mark_beyond_what_was_read_is_refused():
    with pytest.raises(ValueError, match="holds 0 tokens, fewer than the 4"):
        Cache([]).back_to(Mark(4, ()))


def test_documents_must_be_given_for_the_cached_tokens_too():
    space = BaseModel(vocab_size=8)
    arch = Architecture(4, (LayerSpec(1, 1, 2, 4),))
    model = scrambled(FixedShape(space, arch))
    tokens = random_tokens(space, 1, 4)
    cache = model.new_cache(arch, 1, 8)
    with torch.no_grad():
        model(tokens, cache=cache)
        with pytest.raises(ValueError, match="given for 4 tokens, 8 were read"):
            model(tokens, documents=torch.zeros_like(tokens), cache=cache)


def test_experts_are_the_same_one_token_at_a_time():
    base = BaseModel(vocab_size=32, max_seq=16)
    sparse = LayerSpec(1, 2, 4, 8, mixer="mlgru", experts=4, top_k=2)
    arch = Architecture(8, (sparse, replace(sparse, mixer="attention"), replace(sparse, mixer="none")))
    model, tokens = scrambled(FixedShape(base, arch)), random_tokens(base, 2, 6)
    cache = model.new_cache(arch, 2, 6)
    with torch.no_grad():
        parts = [model(part, cache=cache) for part in tokens.split(1, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), rtol=1e-4, atol=1e-4)
