"""Attention against a softmax written out in float64, with groups of queries and with documents."""

import torch
from grids import grid
from hypothesis import given, settings
from hypothesis import strategies as st

from llmnas.nn.attention import Attention, attend, document_starts
from llmnas.nn.rope import frequencies, rotate, rotations
from llmnas.space import BaseModel, LayerKinds, LayerSpec


def explicit(q, k, v, documents=None):
    """One query, one head at a time: query head h uses KV head h // queries_per_group."""
    batch, seq, heads, dim = q.shape
    group = heads // k.shape[2]
    out = torch.zeros(batch, seq, heads, v.shape[-1], dtype=torch.float64)
    for b in range(batch):
        for t in range(seq):
            seen = [s for s in range(t + 1) if documents is None or documents[b, s] == documents[b, t]]
            for h in range(heads):
                scores = k[b, seen, h // group].double() @ q[b, t, h].double() / dim**0.5
                out[b, t, h] = scores.softmax(0) @ v[b, seen, h // group].double()
    return out


def random_documents(batch, seq, seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, seq, generator=generator) < 0.3).cumsum(1)


CASES = (st.integers(1, 2), st.integers(1, 8), st.integers(1, 3), st.integers(1, 3), st.sampled_from([2, 4, 8]))


@given(*CASES, st.booleans(), st.integers(0, 1000))
@settings(max_examples=60)
def test_attend_is_softmax_attention(batch, seq, kv, queries, dim, packed, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, seq, heads, dim, generator=generator) for heads in (kv * queries, kv, kv))
    documents = random_documents(batch, seq, seed) if packed else None
    found = attend(q, k, v, documents)
    assert found.shape == q.shape
    torch.testing.assert_close(found.double(), explicit(q, k, v, documents), rtol=1e-5, atol=1e-5)


@given(*CASES, st.booleans(), st.booleans(), st.integers(0, 1000))
@settings(max_examples=40)
def test_a_slice_of_the_module_is_attention_with_the_leading_heads(batch, seq, kv, queries, dim, norm, biased, seed):
    """Written head by head with plain matrices, in float64."""
    base = BaseModel(vocab_size=8, qk_norm=norm, qkv_bias=biased)
    module = Attention(base, 12, LayerSpec(3, 3, 8, 4), LayerKinds()).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
    spec, hidden = LayerSpec(kv, queries, dim, 4), 10
    x = torch.randn(batch, seq, hidden, dtype=torch.float64, generator=generator)
    rotation = rotations(frequencies(8, 1e4, "spread"), seq, x.device)

    def bias(linear):
        return None if linear.bias is None else linear.bias.view(linear.rows)

    def head(weight, bias_, gain, *index):
        y = x @ weight[index][:dim, :hidden].T
        if bias_ is not None:
            y = y + bias_[index][:dim]
        if gain is not None:
            y = y / (y.pow(2).mean(-1, keepdim=True) + base.norm_eps).sqrt() * gain[:dim]
        return y

    pairs = [(g, i) for g in range(kv) for i in range(queries)]
    q = torch.stack([head(grid(module.q), bias(module.q), module.q_norm, g, i) for g, i in pairs], 2)
    k = torch.stack([head(grid(module.k), bias(module.k), module.k_norm, g) for g in range(kv)], 2)
    v = torch.stack([head(grid(module.v), bias(module.v), None, g) for g in range(kv)], 2)
    mixed = explicit(rotate(q, rotation), rotate(k, rotation), v)
    expected = sum(mixed[:, :, n] @ grid(module.o)[:hidden, g, i, :dim].T for n, (g, i) in enumerate(pairs))
    torch.testing.assert_close(module(x, spec, rotation, None), expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_stays_bfloat16():
    q, k, v = (torch.randn(2, 5, heads, 4).bfloat16() for heads in (4, 2, 2))
    found = attend(q, k, v, None)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), explicit(q, k, v), rtol=3e-2, atol=3e-2)


@given(st.integers(1, 4), st.integers(1, 12), st.integers(0, 1000))
def test_document_starts_are_the_ends_of_runs(batch, seq, seed):
    documents = random_documents(batch, seq, seed)
    starts = document_starts(documents)
    assert starts.dtype == torch.int32
    expected, position = [0], 0
    for row in documents.tolist():
        for t, number in enumerate(row):
            if position and (t == 0 or number != row[t - 1]):
                expected.append(position)
            position += 1
    assert starts.tolist() == [*expected, batch * seq]


def test_equal_numbers_in_neighbouring_rows_are_two_documents():
    assert document_starts(torch.tensor([[0, 0, 1], [1, 1, 1]])).tolist() == [0, 2, 3, 6]
