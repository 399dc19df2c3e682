"""Learning rate and batches as functions of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from llmnas.train.settings import TrainSettings


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Linear warm-up to the peak, then a cosine that would reach `lr_floor * lr` one step after the last.

    A second phase multiplies what is left of it by a constant.
    """
    warmup = warmup_steps(settings)
    peak = settings.lr
    if settings.second_phase and in_second_phase(step, settings):
        peak *= settings.second_phase.lr
    if step < warmup:
        return peak * ((step + 1) / warmup)
    done = (step - warmup) / max(1, settings.steps - warmup)
    floor = settings.lr_floor
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def warmup_steps(settings: TrainSettings) -> int:
    """How many steps the rate rises."""
    return max(1, round(settings.warmup * settings.steps))


def weight_decay(step: int, settings: TrainSettings) -> float:
    """Of the matrices: `weight_decay`, then that of the second phase."""
    if settings.second_phase and in_second_phase(step, settings):
        return settings.second_phase.weight_decay
    return settings.weight_decay


def in_second_phase(step: int, settings: TrainSettings) -> bool:
    """Whether the step is behind the first phase; never where there is one phase."""
    return settings.second_phase is not None and step >= settings.second_phase.start * settings.steps


def first_sequence(step: int, network: int, settings: TrainSettings) -> int:
    """Where in the endless stream of sequences the batch of one network of one step begins."""
    if settings.shared_batch:
        return step * settings.batch_size
    return (step * settings.sampler.networks_per_step() + network) * settings.batch_size
