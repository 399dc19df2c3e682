"""Randomness depends on (seed, purpose, steps) and on nothing else."""

import itertools
import random
import subprocess
import sys

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmnas.rng import generator, torch_seed

COUNTERS = st.lists(st.integers(0, 2**32 - 1), max_size=3)
SEEDS = st.integers(0, 2**32 - 1)


def draws(*arguments):
    return tuple(generator(*arguments).integers(2**63, size=4).tolist())


@given(SEEDS, st.text(), COUNTERS)
def test_equal_arguments_give_the_same_stream_whatever_the_global_generators_hold(seed, purpose, steps):
    first = draws(seed, purpose, *steps), torch_seed(seed, purpose, *steps)
    np.random.seed(seed)
    random.seed(seed)
    torch.manual_seed(seed)
    states = np.random.get_state()[1].copy(), random.getstate(), torch.random.get_rng_state()
    assert (draws(seed, purpose, *steps), torch_seed(seed, purpose, *steps)) == first
    assert (np.random.get_state()[1] == states[0]).all()
    assert random.getstate() == states[1]
    assert torch.equal(torch.random.get_rng_state(), states[2])


def test_the_stream_is_the_same_in_another_process():
    code = "from llmnas.rng import torch_seed; print(torch_seed(7, 'sampling', 3, 1))"
    for hash_seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": hash_seed}
        result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert int(result.stdout) == torch_seed(7, "sampling", 3, 1)


def test_seeds_purposes_and_counters_give_streams_of_their_own():
    arguments = [
        (seed, purpose, *steps)
        for seed in (0, 1, 2)
        for purpose in ("init", "search", "epoch")
        for steps in itertools.product(range(4), repeat=2)
    ]
    assert len({draws(*a) for a in arguments}) == len(arguments)


def test_counters_of_another_length_give_another_stream():
    arguments = [(), (0,), (0, 0), (0, 0, 0), (3,), (3, 0)]
    assert len({draws(1, "sampling", *steps) for steps in arguments}) == len(arguments)


@given(SEEDS, COUNTERS)
def test_torch_accepts_every_seed(seed, steps):
    value = torch_seed(seed, "init", *steps)
    assert 0 <= value < 2**63
    assert torch.Generator().manual_seed(value).initial_seed() == value


def test_streams_of_neighbouring_steps_are_uncorrelated():
    values = np.array([generator(0, "sampling", step).random(50) for step in range(200)])
    correlation = np.corrcoef(values)
    assert np.abs(correlation[np.triu_indices(200, 1)]).max() < 0.75
    assert abs(values[:, 0].mean() - 0.5) < 0.1
