"""RoPE: frequencies that slicing does not move, angles that depend on the distance alone."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmnas.nn.rope import frequencies, pair_order, rotate, rotations

ORDERS = st.sampled_from(["leading", "spread"])
CPU = torch.device("cpu")


def rotation_of(head_dim, seq, order="leading", theta=10_000.0):
    return rotations(frequencies(head_dim, theta, order), seq, CPU)


@given(st.integers(1, 130), ORDERS)
def test_pair_order_is_a_permutation(pairs, order):
    assert sorted(pair_order(pairs, order)) == list(range(pairs))


def test_leading_is_the_natural_order_and_spread_reverses_bits():
    assert pair_order(8, "leading") == [0, 1, 2, 3, 4, 5, 6, 7]
    assert pair_order(8, "spread") == [0, 4, 2, 6, 1, 5, 3, 7]
    assert pair_order(1, "spread") == [0]


@given(st.integers(2, 128), st.data())
def test_leading_parts_of_spread_are_spread(pairs, data):
    """Every window of twice the mean spacing (rounded up to a power of two) holds a pair: no part is left bare."""
    kept = data.draw(st.integers(1, pairs))
    frequencies_kept = sorted(pair_order(pairs, "spread")[:kept])
    gaps = [b - a for a, b in zip([*frequencies_kept], [*frequencies_kept[1:], pairs], strict=True)]
    assert frequencies_kept[0] == 0
    assert max(gaps) <= 4 * math.ceil(pairs / kept)
    if 1 < kept < pairs // 4:
        assert max(pair_order(pairs, "leading")[:kept]) < max(frequencies_kept)


@given(st.integers(1, 64), st.sampled_from([100.0, 10_000.0, 1e6]), ORDERS)
def test_frequencies_are_the_powers(pairs, theta, order):
    found = frequencies(2 * pairs, theta, order)
    assert found.dtype == torch.float64
    for stored, i in zip(found.tolist(), pair_order(pairs, order), strict=True):
        assert math.isclose(stored, theta ** (-2 * i / (2 * pairs)))


@given(st.integers(1, 16), ORDERS, st.data())
def test_a_pair_is_turned_the_same_in_every_head_dim(pairs, order, data):
    kept = data.draw(st.integers(1, pairs))
    rotation = rotation_of(2 * pairs, 5, order)
    x = torch.randn(2, 5, 3, 2 * pairs)
    torch.testing.assert_close(
        rotate(x[..., : 2 * kept].contiguous(), rotation), rotate(x, rotation)[..., : 2 * kept], rtol=1e-6, atol=1e-6
    )


@given(st.integers(1, 8), ORDERS, st.sampled_from([torch.float32, torch.bfloat16]))
def test_it_is_the_rotation_matrix_of_the_paper(pairs, order, dtype):
    seq = 6
    x = torch.randn(1, seq, 2, 2 * pairs).to(dtype)
    expected = torch.empty(x.shape, dtype=torch.float64)
    for position in range(seq):
        for stored, i in enumerate(pair_order(pairs, order)):
            angle = position * 10_000.0 ** (-i / pairs)
            a, b = x[0, position, :, 2 * stored].double(), x[0, position, :, 2 * stored + 1].double()
            expected[0, position, :, 2 * stored] = a * math.cos(angle) - b * math.sin(angle)
            expected[0, position, :, 2 * stored + 1] = a * math.sin(angle) + b * math.cos(angle)
    found = rotate(x, rotation_of(2 * pairs, seq, order))
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@given(st.integers(1, 8), ORDERS)
def test_scores_depend_on_the_distance_alone(pairs, order):
    seq = 40
    q, k = torch.randn(2 * pairs), torch.randn(2 * pairs)
    rotation = rotation_of(2 * pairs, seq, order)
    turned_q, turned_k = (rotate(v.expand(1, seq, 1, -1).contiguous(), rotation)[0, :, 0] for v in (q, k))
    scores = turned_q @ turned_k.T
    for distance in (-7, 0, 1, 20):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores[0, 0], q @ k)


def test_lengths_are_kept():
    x = torch.randn(2, 9, 3, 8)
    torch.testing.assert_close(rotate(x, rotation_of(8, 9)).norm(dim=-1), x.norm(dim=-1))


def test_far_positions_are_exact():
    """In float32 the angle of position 100,000 would be off by 0.004 to 0.01 radian."""
    theta, position = 10_000.0, 100_000
    found = rotation_of(16, position + 1, theta=theta)[position, 0]
    for i, value in enumerate(found.tolist()):
        angle = math.fmod(position * theta ** (-i / 8), 2 * math.pi)
        assert abs(value - complex(math.cos(angle), math.sin(angle))) < 1e-6


@pytest.mark.parametrize("order", ["leading", "spread"])
def test_a_smaller_leading_head_is_a_stock_model_with_another_base(order):
    """Leading pairs of d channels equal all pairs of d' with theta^(d'/d)."""
    kept, full, theta = 8, 32, 10_000.0
    stock = frequencies(kept, theta ** (kept / full), "leading")
    same = torch.allclose(frequencies(full, theta, order)[: kept // 2], stock, rtol=1e-12)
    assert same == (order == "leading")
