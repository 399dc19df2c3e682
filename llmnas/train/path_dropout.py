"""Path dropout: layers of a drawn network are dropped at random, deeper ones and later in training more often.

Shared weights then learn to do without their neighbours (Bender et al. 2018, "Understanding and simplifying one-shot
architecture search", section 3.2, where the rate rises over training). That deep layers go more often is the linear
rule of stochastic depth (Huang et al. 2016, eq. 4); for layers of a transformer see LayerDrop (Fan et al. 2020), for
both schedules at once progressive layer dropping (Zhang and He 2020, section 4).
"""

from __future__ import annotations

import numpy as np

from llmnas.cost import Budget
from llmnas.space import Architecture, SearchSpace

_TRIES = 256


def drop_probability(layer: int, layers: int, rate: float) -> float:
    """rate x (layer + 1) / layers: the last layer of the supernet goes with probability `rate`."""
    return rate * (layer + 1) / layers


def drop_layers(
    space: SearchSpace, budget: Budget | None, arch: Architecture, rate: float, rng: np.random.Generator
) -> Architecture:
    """The network with each kept layer dropped by itself with `drop_probability`.

    What is not of the space or not within the budget is drawn again, so the result follows the law above conditioned on
    being allowed. (After 256 refusals nothing is dropped: the law leaves hardly anything else.)
    """
    kept = arch.kept
    probability = np.array([drop_probability(i, space.layers, rate) for i, _ in kept])
    for dropped in rng.random((_TRIES, len(kept))) < probability:
        if not dropped.any():
            return arch
        left = {i: spec for (i, spec), gone in zip(kept, dropped, strict=True) if not gone}
        if space.allows(tuple(left)):
            found = space.build(arch.hidden_size, left)
            if budget is None or budget.admits(space.base, found):
                return found
    return arch
