"""Reading with a cache, in any pieces, gives what reading at once gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import random_tokens, scrambled, spaces_with_members


@settings(max_examples=25)
@given(spaces_with_members(), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 3))
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


@given(spaces_with_members())
@settings(max_examples=5)
def test_cut_cache_reads_on_from_there(case):
    space, arch = case
    model = scrambled(space).double().eval()
    first, second = random_tokens(space.base, 2, 7), random_tokens(space.base, 2, 7, seed=1)
    second[:, :4] = first[:, :4]
    cache = model.new_cache(arch, 2, 7)
    with torch.no_grad():
        model(first, arch, cache=cache)
        cache.truncate(4)
        found = model(second[:, 4:], arch, cache=cache)
        torch.testing.assert_close(found, model(second, arch)[:, 4:], rtol=1e-6, atol=1e-6)


@given(spaces_with_members())
@settings(max_examples=3)
def test_cache_that_is_full_refuses(case):
    space, arch = case
    model = scrambled(space)
    cache = model.new_cache(arch, 1, 3)
    with torch.no_grad(), pytest.raises(ValueError, match="holds 3 tokens, 4 were read"):
        model(random_tokens(space.base, 1, 4), arch, cache=cache)
    with pytest.raises(ValueError, match="cannot be cut to 1"):
        cache.truncate(1)
