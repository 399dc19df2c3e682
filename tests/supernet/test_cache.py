"""Reading with a cache, in any pieces, gives what reading at once gives."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import random_tokens, scrambled, spaces_with_members

from llmnas.nn.cache import Cache, Mark
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec


@settings(max_examples=12)
@given(spaces_with_members(kinds=True), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 3))
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


@given(spaces_with_members(kinds=True))
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


def test_documents_and_a_cache_exclude_each_other():
    space = BaseModel(vocab_size=8)
    arch = Architecture(4, (LayerSpec(1, 1, 2, 4),))
    model = scrambled(FixedShape(space, arch))
    tokens = random_tokens(space, 1, 4)
    with pytest.raises(ValueError, match="documents cannot be told apart"):
        model(tokens, documents=torch.zeros_like(tokens), cache=model.new_cache(arch, 1, 4))
