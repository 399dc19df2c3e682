"""Learning rate and batch positions: pure functions of the step."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmnas.train.schedule import first_sequence, learning_rate, weight_decay
from llmnas.train.settings import SecondPhase, TrainSettings


def rates(**settings):
    settings = TrainSettings(**settings)
    return [learning_rate(step, settings) for step in range(settings.steps)]


def test_by_hand():
    found = rates(steps=10, lr=1.0, warmup=0.2, lr_floor=0.2)
    # 8 steps of cosine: done = 0, 1/8, ..., 7/8
    cosine = [0.2 + 0.8 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]
    assert found == pytest.approx([0.5, 1.0, *cosine])


@given(st.integers(1, 300), st.floats(1e-5, 1), st.floats(0, 0.99), st.floats(0, 1))
def test_up_to_the_peak_then_down_to_the_floor(steps, lr, warmup, floor):
    found = rates(steps=steps, lr=lr, warmup=warmup, lr_floor=floor)
    peak = max(1, round(warmup * steps)) - 1
    assert found[peak] == pytest.approx(lr)
    assert all(a < b for a, b in pairwise(found[: peak + 1]))
    assert all(a >= b for a, b in pairwise(found[peak:]))
    assert all(min(lr / (peak + 1), floor * lr) * (1 - 1e-9) <= rate <= lr * (1 + 1e-9) for rate in found)


def test_the_first_step_already_learns_and_the_last_is_near_the_floor():
    found = rates(steps=1000, lr=2e-3, warmup=0.05, lr_floor=0.1)
    assert found[0] == pytest.approx(2e-3 / 50)
    assert found[-1] == pytest.approx(2e-4, rel=1e-3)


@given(st.sampled_from(["single", "uniform", "sandwich"]), st.integers(1, 4), st.integers(1, 16), st.integers(0, 50))
def test_batches_tile_the_stream(kind, random, batch_size, start):
    sampler = {"kind": kind} | ({} if kind == "single" else {"random": random})
    settings = TrainSettings(steps=1, batch_size=batch_size, sampler=sampler)
    networks = range(settings.sampler.networks_per_step())
    firsts = [first_sequence(step, i, settings) for step in range(start, start + 3) for i in networks]
    begin = start * len(networks) * batch_size
    assert firsts == list(range(begin, begin + 3 * len(networks) * batch_size, batch_size))


@given(st.integers(1, 16), st.integers(0, 50), st.integers(0, 5))
def test_a_shared_batch_is_the_same_for_all_networks(batch_size, step, network):
    settings = TrainSettings(steps=1, batch_size=batch_size, shared_batch=True, sampler={"kind": "sandwich"})
    assert first_sequence(step, network, settings) == step * batch_size


def test_the_second_phase_multiplies_the_rate_and_changes_the_decay():
    """BitNet's recipe: from the middle on half of the rate, and no weight decay."""
    one = TrainSettings(steps=10, lr=1.0, warmup=0.2, lr_floor=0.2, weight_decay=0.1)
    two = one.model_copy(update={"second_phase": SecondPhase()})
    assert rates(**two.model_dump()) == pytest.approx(
        [rate * (0.5 if step >= 5 else 1) for step, rate in enumerate(rates(**one.model_dump()))]
    )
    assert [weight_decay(step, two) for step in range(10)] == [0.1] * 5 + [0.0] * 5
    assert {weight_decay(step, one) for step in range(10)} == {0.1}


@given(st.integers(1, 50), st.floats(0.01, 0.99), st.floats(0.01, 1), st.floats(0, 1))
def test_the_second_phase_begins_where_it_says(steps, start, factor, decay):
    plain = TrainSettings(steps=steps)
    settings = TrainSettings(steps=steps, second_phase={"start": start, "lr": factor, "weight_decay": decay})
    for step in range(steps):
        later = step >= start * steps
        assert learning_rate(step, settings) == pytest.approx(learning_rate(step, plain) * (factor if later else 1))
        assert weight_decay(step, settings) == (decay if later else plain.weight_decay)
