"""Energy of one pass from a stated model, for devices whose energy cannot be measured here.

A known GPU: its board power during the roofline time, which is what a board at its power limit draws at peak speed.
Any other device: a price for each operation and for each byte moved (Horowitz 2014, "Computing's energy problem",
figure 1.1.9, 45 nm): a 32-bit multiply-add 3.7 + 0.9 pJ, a 16-bit one 1.1 + 0.4 pJ, the addition of integers that a
low-bit weight makes of it 0.1 pJ, and DRAM 1.3-2.6 nJ for 64 bits, of which the middle is taken. Newer processes need
less, caches save bytes, and the rest of the machine needs more: the model ranks architectures, its joules are an order
of magnitude.
"""

from __future__ import annotations

from llmnas.cost.latency import Phase
from llmnas.cost.memory import Workload
from llmnas.cost.roofline import Gpu, roofline_ms, work
from llmnas.space import Architecture, BaseModel

JOULES_PER_FLOP = {4: (3.7e-12 + 0.9e-12) / 2, 2: (1.1e-12 + 0.4e-12) / 2}
"""By bytes of a value; a multiply-add is two operations."""
JOULES_PER_INTEGER_OPERATION = 0.1e-12 / 2
JOULES_PER_BYTE = (1.3e-9 + 2.6e-9) / 2 / 8


def modelled_energy_j(
    arch: Architecture, base: BaseModel, workload: Workload, phase: Phase, device: Gpu | None = None
) -> float:
    """Joules of one pass; without a known GPU by operations and bytes. Positive for every architecture."""
    if device is not None:
        return device.watts * roofline_ms(arch, base, workload, phase, device) / 1e3
    each = JOULES_PER_FLOP[4 if workload.bytes_per_value > 2 else 2]
    return sum(
        each * (piece.flops - piece.integers)
        + JOULES_PER_INTEGER_OPERATION * piece.integers
        + JOULES_PER_BYTE * piece.bytes
        for piece in work(arch, base, workload, phase)
    )


def energy_model(device: Gpu | None) -> str:
    """What the joules of `modelled_energy_j` are, in words."""
    if device is not None:
        return f"a model: {device.watts:g} W of board power during the roofline time ({device.source})"
    return "a model: energy for each operation and byte at 45 nm (Horowitz 2014), not a measurement"
