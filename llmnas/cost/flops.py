"""Floating-point operations of the forward pass, per token.

Convention (Kaplan et al. 2020, table 1; PaLM, appendix B): a multiply-add counts as two
operations; every weight matrix costs two operations per weight and token, the head
included; attention costs 2 q_heads head_dim for q k^T and as much for the weighted sum
of values, per attended position. Of a mixture of experts a token pays for those it uses, and the
router. Left out: the embedding lookup, norms, RoPE, softmax, gates and recurrences, the activation
function and residual additions (under 1 % at usual widths). A training step costs three times the
forward pass. An operation with a ternary or binary weight counts like any other in a sum; what is of which
kind says `operations_by_kind`.
"""

from __future__ import annotations

from llmnas.cost.params import layer_matmul_params, router_params
from llmnas.space import Architecture, BaseModel, LayerSpec
from llmnas.space.architecture import Weights


def layer_flops(hidden_size: int, spec: LayerSpec, attended: float) -> float:
    """Operations of one block for one token that attends to `attended` positions."""
    scores = 4 * spec.q_heads * spec.head_dim * attended if spec.mixer == "attention" else 0
    return 2 * layer_matmul_params(hidden_size, spec) + scores


def low_bit_operations(hidden_size: int, spec: LayerSpec) -> int:
    """Those of `layer_flops` that meet ternary or binary weights: projections, not a router nor attention itself."""
    if spec.weights == "dense":
        return 0
    return 2 * (layer_matmul_params(hidden_size, spec) - router_params(hidden_size, spec))


def head_flops(base: BaseModel, hidden_size: int) -> int:
    """Operations of the projection to the vocabulary for one token."""
    return 2 * base.vocab_size * hidden_size


def prefill_flops_per_token(arch: Architecture, base: BaseModel, seq: int) -> float:
    """Mean operations a token when `seq` tokens are read at once under a causal mask.

    Position t (from 1) attends to t positions, (seq + 1) / 2 on average. Kernels that do
    not skip the masked half do up to twice the attention work.
    """
    attended = (seq + 1) / 2
    return head_flops(base, arch.hidden_size) + sum(
        layer_flops(arch.hidden_size, spec, attended) for _, spec in arch.kept
    )


def decode_flops_per_token(arch: Architecture, base: BaseModel, context: int) -> float:
    """Operations of generating one token that attends to `context` positions, itself included."""
    return head_flops(base, arch.hidden_size) + sum(
        layer_flops(arch.hidden_size, spec, context) for _, spec in arch.kept
    )


def operations_by_kind(arch: Architecture, base: BaseModel, context: int) -> dict[Weights, float]:
    """`decode_flops_per_token` by what the operations meet.

    Returns:
        dense: floating-point multiply-adds, with attention's own and the head. ternary: int8 values added, taken away
        or left out. binary: signs compared and counted, or int8 values added or taken away behind a gate.
    """
    found: dict[Weights, float] = {"dense": decode_flops_per_token(arch, base, context), "ternary": 0.0, "binary": 0.0}
    for _, spec in arch.kept:
        integers = low_bit_operations(arch.hidden_size, spec)
        found["dense"] -= integers
        found[spec.weights] += integers
    return found
