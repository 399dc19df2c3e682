"""A loss that runs away is told at once; curves as they are, with noise and hard batches, are not."""

import math
from pathlib import Path

import numpy as np
import pytest

from llmnas.train.divergence import MEMORY, RECENT, Divergence
from llmnas.train.settings import TrainSettings

VOCAB = 2048
QUICKSTART = [float(word) for word in Path(__file__).with_name("quickstart_losses.txt").read_text().split()]
"""The loss of every step of the supernet of search_configs/quickstart.yaml."""


def settings_of(steps=2000, **changes):
    return TrainSettings(steps=steps, **changes)


def told(losses, settings=None, vocab=VOCAB):
    """{step: what was said}."""
    watch = Divergence(settings or settings_of(len(losses)), vocab)
    found = {step: watch.see(step, loss) for step, loss in enumerate(losses)}
    return {step: why for step, why in found.items() if why}


def falling(steps=400, noise=0.1, seed=0):
    rng = np.random.default_rng(seed)
    return [4 + 3.6 * math.exp(-step / 60) + rng.normal(0, noise) for step in range(steps)]


def test_the_quickstart_raises_no_alarm():
    assert len(QUICKSTART) == 2000
    assert told(QUICKSTART) == {}


@pytest.mark.parametrize("seed", range(20))
def test_noise_and_one_hard_batch_raise_none(seed):
    losses = falling(seed=seed)
    losses[250] += 1.0
    assert told(losses) == {}


@pytest.mark.parametrize("at", [400, 1000, 1900])
def test_the_quickstart_with_a_rise_is_told_within_four_steps(at):
    losses = QUICKSTART[:at] + [loss + 1.5 for loss in QUICKSTART[at:]]
    (step, why), *_ = told(losses).items()
    assert at <= step < at + 4
    assert why.startswith(f"step {step}: loss {losses[step]:.3f}, in the last steps ")
    assert "deviations) above its running mean" in why


def test_a_jump_is_told_in_its_step_and_once():
    losses = falling()
    losses[300:] = [loss + 30 for loss in losses[300:]]
    assert list(told(losses)) == [300]


def test_the_next_rise_is_told_again():
    losses = falling()
    for at in (280, 340):
        losses[at : at + 10] = [7.0] * 10
    assert [[at <= step < at + 4 for step in told(losses)] for at in (280, 340)] == [[True, False], [False, True]]


def test_above_guessing_after_warm_up():
    settings = settings_of(100, warmup=0.1)
    losses = [math.log(VOCAB) + 0.1] * 10 + [math.log(VOCAB) + 1.0] * 90
    assert told(losses, settings) == {10: f"step 10: loss {losses[-1]:.3f}, above {math.log(VOCAB):.3f}, that of "
                                          "guessing uniformly"}  # fmt: skip


def test_a_rate_of_30_is_told_in_its_first_bad_step_in_the_middle_of_warm_up():
    """As measured: search_configs/quickstart.yaml with train.lr=30."""
    assert list(told([7.62, 172.66, 385.11, 628.42, 1133.97, 1877.33, 5196.31], settings_of(150))) == [1]


def test_weights_as_they_are_drawn_are_no_divergence():
    assert told([math.log(300) + 0.05] * 6, settings_of(6), vocab=300) == {}


def test_parts_of_a_pretrained_model_may_begin_anywhere():
    assert told([25.0, 20.0, 15.0, 8.0, 5.0], settings_of(100, warmup=0.5, init_from="model")) == {}


def test_a_phase_that_opens_networks_begins_anew():
    phases = [{"start": 300, "open": ["depth"]}]
    losses = falling()
    losses[300:] = [loss + 1.5 for loss in losses[300:]]
    sampler = {"kind": "progressive", "phases": phases}
    assert told(losses, settings_of(400, sampler=sampler)) == {}
    assert told(losses) != {}


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_says_nothing(loss):
    losses = falling()
    losses[200] = losses[300] = loss
    assert told(losses) == {}


def test_calm_is_the_newest_step_that_was_as_it_should_be():
    losses = falling()
    losses[300:] = [loss + 30 for loss in losses[300:]]
    watch = Divergence(settings_of(400), VOCAB)
    for step, loss in enumerate(losses):
        watch.see(step, loss)
    assert watch.calm == 299


@pytest.mark.parametrize("cut", [0, 1, 40, 300, 302])
def test_a_run_that_goes_on_is_told_the_same(cut):
    losses = falling()
    losses[300:320] = [9.0] * 20
    alone, first, second = (Divergence(settings_of(400), VOCAB) for _ in range(3))
    expected = [alone.see(step, loss) for step, loss in enumerate(losses)]
    found = [first.see(step, loss) for step, loss in enumerate(losses[:cut])]
    second.restore(first.state())
    found += [second.see(cut + i, loss) for i, loss in enumerate(losses[cut:])]
    assert found == expected
    assert second.calm == alone.calm


def test_mean_and_deviation_are_those_of_the_textbook():
    """Exponential weights, normalised, over all but the recent steps; written out as sums."""
    losses = list(5 + np.random.default_rng(0).normal(0, 0.1, 100))
    watch = Divergence(settings_of(400), VOCAB)
    assert [watch.see(step, loss) for step, loss in enumerate(losses)] == [None] * 100
    old, recent = losses[: 100 - RECENT], np.mean([*losses[101 - RECENT :], 7.9])
    weights = [(1 - 1 / MEMORY) ** (len(old) - 1 - step) for step in range(len(old))]
    mean = np.average(old, weights=weights)
    before = [np.average(old[:n], weights=weights[-n:]) for n in range(1, len(old))]
    deviation = math.sqrt(np.average([0.0, *np.subtract(old[1:], before) ** 2], weights=weights))
    rise = recent - mean
    assert watch.see(100, 7.9) == (
        f"step 100: loss 7.900, in the last steps {rise:.3f} ({rise / deviation:.1f} deviations) above its running "
        f"mean {mean:.3f}"
    )
