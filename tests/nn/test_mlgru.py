"""The recurrence against a loop in float64; states, documents, slices and gradients."""

import pytest
import torch
from grids import grid
from hypothesis import given, settings
from hypothesis import strategies as st

from llmnas.nn.cache import State
from llmnas.nn.mlgru import MLGRU, scan, starts_of
from llmnas.space import BaseModel, LayerKinds, LayerSpec

BASE = BaseModel(vocab_size=8)


def loop(forget, kept, state=None, starts=None):
    h = torch.zeros_like(kept[:, 0]) if state is None else state
    out = []
    for t in range(kept.shape[1]):
        f = forget[:, t] if starts is None else forget[:, t].masked_fill(starts[:, t, None], 0)
        h = f * h + kept[:, t]
        out.append(h)
    return torch.stack(out, 1)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 5), st.booleans(), st.booleans(), st.integers(0, 99))
def test_scan_is_the_recurrence(batch, seq, width, with_state, with_starts, seed):
    forget, kept = random(batch, seq, width, seed=seed).sigmoid(), random(batch, seq, width, seed=seed + 1)
    state = random(batch, width, seed=seed + 2) if with_state else None
    starts = random(batch, seq, seed=seed + 3) > 0.7 if with_starts else None
    torch.testing.assert_close(scan(forget, kept, state, starts), loop(forget, kept, state, starts))


def test_gradients_of_everything_that_goes_in():
    forget, kept, state = random(2, 7, 3).sigmoid(), random(2, 7, 3, seed=1), random(2, 3, seed=2)
    starts = torch.zeros(2, 7, dtype=torch.bool)
    starts[0, 3] = True
    inputs = tuple(x.requires_grad_() for x in (forget, kept, state))
    assert torch.autograd.gradcheck(lambda *x: scan(*x, starts), inputs)


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_gates_at_their_ends_neither_overflow_nor_forget_wrongly(gate):
    forget, kept = torch.full((1, 300, 2), gate), torch.ones(1, 300, 2)
    expected = torch.arange(1.0, 301) if gate else torch.ones(300)
    assert torch.equal(scan(forget, kept)[0, :, 0], expected)


def module(seed=0):
    found = MLGRU(BASE, 12, LayerSpec(2, 3, 4, 4), LayerKinds())
    with torch.no_grad():
        for i, parameter in enumerate(found.parameters()):
            parameter.normal_(generator=torch.Generator().manual_seed(seed + i))
    return found


@given(st.integers(1, 2), st.integers(1, 3), st.sampled_from([2, 4]), st.sampled_from([4, 12]), st.integers(0, 99))
@settings(max_examples=30)
def test_a_slice_is_the_equations_with_the_leading_channels(kv, queries, dim, hidden, seed):
    mixer = module(seed).double()
    spec = LayerSpec(kv, queries, dim, 4, mixer="mlgru")
    x = random(2, 5, hidden, seed=seed)
    index = (slice(kv), slice(queries), slice(dim))
    forget, candidate, gate = (
        grid(getattr(mixer, name))[index][..., :hidden].flatten(0, 2) for name in ("forget", "candidate", "output_gate")
    )
    lower = mixer.lower[index].flatten().sigmoid()
    f = lower + (1 - lower) * (x @ forget.T).sigmoid()
    c = x @ candidate.T
    c = c * c.sigmoid()
    h = loop(f, (1 - f) * c)
    out = grid(mixer.o)[(slice(hidden), *index)].flatten(1)
    expected = ((x @ gate.T).sigmoid() * h) @ out.T
    torch.testing.assert_close(mixer(x, spec, None), expected)


def test_documents_do_not_see_each_other():
    mixer, spec = module().double(), LayerSpec(2, 3, 4, 4, mixer="mlgru")
    x = random(1, 9, 12)
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2]])
    apart = torch.cat([mixer(x[:, a:b], spec, None) for a, b in ((0, 3), (3, 5), (5, 9))], 1)
    torch.testing.assert_close(mixer(x, spec, documents), apart)
    assert starts_of(documents).tolist() == [[False, False, False, True, False, True, False, False, False]]


def test_chunks_with_a_state_are_the_whole():
    mixer, spec = module().double(), LayerSpec(2, 3, 4, 4, mixer="mlgru")
    x = random(2, 11, 12)
    whole, state, parts = mixer(x, spec, None), None, []
    for begin, end in ((0, 4), (4, 5), (5, 11)):
        part = x[:, begin:end]
        hidden = scan(*mixer.gates(part, spec), state)
        state = hidden[:, -1]
        parts.append(mixer.project(hidden, part, spec))
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    cache = State(scan(*mixer.gates(x[:, :4], spec))[:, -1])
    torch.testing.assert_close(mixer(x[:, 4:], spec, None, cache), whole[:, 4:])
    torch.testing.assert_close(cache.state, state)
