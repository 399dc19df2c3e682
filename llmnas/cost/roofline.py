"""Latency of known GPUs from published peaks: a lower bound, never a measurement.

A block takes at least max(operations / peak, bytes / bandwidth) (Williams, Waterman and Patterson 2009, the
roofline model), and so does the head; the blocks of a network follow one another. Real engines reach 40-80 % of
it at large sizes and far less at small ones, where launching kernels costs more than the work.
"""

from __future__ import annotations

from typing import NamedTuple

from llmnas.cost.flops import head_flops, layer_flops
from llmnas.cost.latency import Phase
from llmnas.cost.memory import BITS, Workload, layer_kv_values, layer_state_values, layer_weight_bytes
from llmnas.cost.params import expert_matmul_params
from llmnas.errors import UserError
from llmnas.space import Architecture, BaseModel, LayerSpec


class Gpu(NamedTuple):
    """Published peaks of one board.

    Attributes:
        flops: a second, dense bf16 tensor cores with fp32 accumulation.
        bandwidth: bytes a second of device memory.
        watts: board power.
        source: where the figures stand.
    """

    flops: float
    bandwidth: float
    watts: float
    source: str


GPUS = {
    "a100": Gpu(312e12, 2039e9, 400, "NVIDIA A100 80GB SXM data sheet"),
    "h100": Gpu(989.4e12, 3350e9, 700, "NVIDIA H100 SXM data sheet and Hopper architecture white paper (dense)"),
    "h200": Gpu(989.4e12, 4800e9, 700, "NVIDIA H200 SXM data sheet (dense)"),
    "l4": Gpu(121e12, 300e9, 72, "NVIDIA L4 data sheet (half of the figure with sparsity)"),
    "rtx4090": Gpu(165.2e12, 1008e9, 450, "NVIDIA Ada GPU architecture white paper, appendix A (dense)"),
}


class Work(NamedTuple):
    """What one piece of a pass does at least: floating-point operations, and bytes to and from memory."""

    flops: float
    bytes: float


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
    weights = layer_weight_bytes(base, hidden_size, spec, size) - untouched * BITS.get(spec.weights, 8 * size) / 8
    values = 2 * tokens * hidden_size
    values += workload.batch * (context * layer_kv_values(spec) + 2 * layer_state_values(spec))
    return Work(tokens * layer_flops(hidden_size, spec, attended), weights + size * values)


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
    return 1e3 * sum(max(piece.flops / device.flops, piece.bytes / device.bandwidth) for piece in pieces)
