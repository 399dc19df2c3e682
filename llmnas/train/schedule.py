"""Learning rate and batches as functions of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from llmnas.train.settings import TrainSettings


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Linear warm-up to the peak, then a cosine that would reach `lr_floor * lr` one step after the last."""
    warmup = max(1, round(settings.warmup * settings.steps))
    if step < warmup:
        return settings.lr * ((step + 1) / warmup)
    done = (step - warmup) / max(1, settings.steps - warmup)
    floor = settings.lr_floor
    return settings.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def first_sequence(step: int, network: int, settings: TrainSettings) -> int:
    """Where in the endless stream of sequences the batch of one network of one step begins."""
    if settings.shared_batch:
        return step * settings.batch_size
    return (step * settings.sampler.networks_per_step() + network) * settings.batch_size
