"""Randomness as a pure function of (seed, step, purpose): nothing to save, nothing shared."""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, purpose: str, *steps: int) -> np.random.Generator:
    """A fresh generator for one decision.

    The same arguments give the same stream on every rank and after every resume, so
    no generator state is ever stored. `steps` are the counters that tell decisions of
    one purpose apart (optimizer step, micro-step, generation).
    """
    # the number of counters is part of the key: NumPy pads with zeros, so [.., 3] and [.., 3, 0] would be one stream
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), len(steps), *steps])


def torch_seed(seed: int, purpose: str, *steps: int) -> int:
    """A 63-bit seed for a `torch.Generator`, from the same rule as `generator`."""
    return int(generator(seed, purpose, *steps).integers(2**63))
