"""Latency of known GPUs from published peaks: a lower bound, never a measurement.

A block takes at least max(operations / peak, bytes / bandwidth) (Williams, Waterman and Patterson 2009, the
roofline model), and so does the head; the blocks of a network follow one another. Products with ternary and binary
weights run on the int8 tensor cores (binary ones could be faster still on boards that multiply bits). Real engines
reach 40-80 % of it at large sizes and far less at small ones, where launching kernels costs more than the work.
"""

from __future__ import annotations

from typing import NamedTuple

from llmnas.cost.flops import head_flops, layer_flops, low_bit_operations
from llmnas.cost.latency import Phase
from llmnas.cost.memory import Workload, layer_kv_values, layer_state_values, layer_weight_bytes, weights_a_byte
from llmnas.cost.params import expert_matmul_params
from llmnas.errors import UserError
from llmnas.space import Architecture, BaseModel, LayerSpec


class Gpu(NamedTuple):
    """Published peaks of one board.

    Attributes:
        flops: a second, dense bf16 tensor cores with fp32 accumulation.
        int8: operations a second, dense int8 tensor cores.
        bandwidth: bytes a second of device memory.
        watts: board power.
        source: where the figures stand.
    """

    flops: float
    int8: float
    bandwidth: float
    watts: float
    source: str


GPUS = {
    "a100": Gpu(312e12, 624e12, 2039e9, 400, "NVIDIA A100 80GB SXM data sheet"),
    "h100": Gpu(
        989.4e12, 1978.9e12, 3350e9, 700, "NVIDIA H100 SXM data sheet and Hopper architecture white paper (dense)"
    ),
    "h200": Gpu(989.4e12, 1978.9e12, 4800e9, 700, "NVIDIA H200 SXM data sheet (dense)"),
    "l4": Gpu(121e12, 242e12, 300e9, 72, "NVIDIA L4 data sheet (half of the figure with sparsity)"),
    "rtx4090": Gpu(165.2e12, 660.6e12, 1008e9, 450, "NVIDIA Ada GPU architecture white paper, appendix A (dense)"),
}


class Work(NamedTuple):
    """What one piece of a pass does at least.

    Attributes:
        flops: operations, those with low-bit weights included.
        bytes: to and from memory.
        integers: of the operations, those with low-bit weights.
    """

    flops: float
    bytes: float
    integers: float = 0.0


def gpu(name: str) -> Gpu:
    """A known GPU; `UserError` with the names there are."""
    if name not in GPUS:
        raise UserError(f"device: {name!r} is not known; allowed: this, {', '.join(GPUS)}")
    return GPUS[name]


def layer_work(base: BaseModel, hidden_size: int, spec: LayerSpec, workload: Workload, phase: Phase) -> Work:
    """One block: weights read once, the residual read and written, keys, values and states written or read.

    Of a mixture of experts those are read that the tokens can use. Prefill reads `context` tokens a
    sequence; decode one token after `context` - 1 others.
    """
    context = workload.tokens(base)
    tokens = workload.batch * (context if phase == "prefill" else 1)
    attended = (context + 1) / 2 if phase == "prefill" else context
    size = workload.bytes_per_value
    untouched = max(0, spec.experts - tokens * spec.top_k) * expert_matmul_params(hidden_size, spec)
    idle = float(untouched / weights_a_byte(spec, workload))
    weights = layer_weight_bytes(base, hidden_size, spec, workload) - idle
    values = 2 * tokens * hidden_size
    values += workload.batch * (context * layer_kv_values(spec) + 2 * layer_state_values(spec))
    flops, integers = layer_flops(hidden_size, spec, attended), low_bit_operations(hidden_size, spec)
    return Work(tokens * flops, weights + size * values, tokens * integers)


def head_work(base: BaseModel, hidden_size: int, workload: Workload) -> Work:
    """The projection of each sequence's last position to the vocabulary, in both phases."""
    values = base.vocab_size * hidden_size + workload.batch * (base.vocab_size + hidden_size)
    return Work(workload.batch * head_flops(base, hidden_size), workload.bytes_per_value * values)


def work(arch: Architecture, base: BaseModel, workload: Workload, phase: Phase) -> list[Work]:
    """The pieces of one pass that follow one another."""
    blocks = [layer_work(base, arch.hidden_size, spec, workload, phase) for _, spec in arch.kept]
    return [*blocks, head_work(base, arch.hidden_size, workload)]


def roofline_ms(arch: Architecture, base: BaseModel, workload: Workload, phase: Phase, device: Gpu) -> float:
    """The least milliseconds that one pass takes on the device."""
    pieces = work(arch, base, workload, phase)
    return 1e3 * sum(max(_busy(piece, device), piece.bytes / device.bandwidth) for piece in pieces)


def _busy(piece: Work, device: Gpu) -> float:
    """The least seconds of its operations."""
    return (piece.flops - piece.integers) / device.flops + piece.integers / device.int8
