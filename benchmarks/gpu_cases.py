"""The part of gpu_kernels.py that needs a GPU: tensors, kernels, float64 references, baselines and the clock.

References are the plain torch twins (`triton_kernels/reference.py`) fed with float64, on the same device. A test
prepares every case at a small size on the CPU, in Triton's interpreter.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from gpu_kernels import Case, Device, Ready, installed
from torch import Tensor

from llmnas.triton_kernels import reference
from llmnas.triton_kernels.act_quant import act_quant
from llmnas.triton_kernels.mlgru_scan import mlgru_scan
from llmnas.triton_kernels.rmsnorm_quant import rmsnorm_backward, rmsnorm_quant
from llmnas.triton_kernels.swiglu_norm_quant import swiglu_norm_backward, swiglu_norm_quant
from llmnas.triton_kernels.ternary_linear import grad_input, grad_weight
from llmnas.triton_kernels.ternary_matmul import ternary_matmul
from llmnas.triton_kernels.ternary_pack import pack2, pack3
from llmnas.triton_kernels.xnor_matmul import pack1, xnor_matmul

DEVICE = "cuda"
EPS = 1e-5
WARM, CALLS = 3, 30
FLUSHED = 1 << 30  # bytes written between two calls: more than any cache, and time enough to queue the next call
EXACT, BF16, FP32 = 0.0, 2.0**-8, 1e-4  # allowed share of the largest value
CODE = 1.01 / 127  # one step of one int8 code, where sums in another order meet the edge of a rounding


def milliseconds(call: Callable[[], Any]) -> float:
    """Median of a call on the GPU between two events, caches flushed.

    The flush also hides the launch: while the GPU writes for some 0.3 ms the CPU has checked the arguments and
    queued the kernel, so that a kernel of a few microseconds is not measured as the Python in front of it.
    """
    for _ in range(WARM):
        call()
    buffer = torch.empty(FLUSHED, dtype=torch.uint8, device=DEVICE)
    pairs = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(CALLS)]
    for begin, end in pairs:
        buffer.zero_()
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs)


def optional(name: str, make: Callable[[], Any]) -> dict[str, Any]:
    """What an alternative gives under its name, nothing where it does not work on this device: it is said."""
    try:
        return {name: make()}
    except Exception as error:  # noqa: BLE001 (other libraries fail in their own ways, and are not what is measured)
        print(f"{name}: left out ({type(error).__name__}: {error})", flush=True)
        return {}


def measure_device() -> Device:
    """Bandwidth of a copy that no cache holds, rate of a large bf16 product, time of quantising one token."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    copied = 2 * source.numel() / (1e-3 * milliseconds(lambda: target.copy_(source)))
    a = torch.randn(8192, 8192, dtype=torch.bfloat16, device=DEVICE)
    rate = 2 * 8192**3 / (1e-3 * milliseconds(lambda: a @ a))
    token = normal(1, 64)
    return Device(torch.cuda.get_device_name(), copied, rate, milliseconds(lambda: act_quant(token)))


def prepare(case: Case) -> Ready:
    """The case on this GPU, from a fixed seed."""
    torch.manual_seed(0)
    make = {
        "ternary_matmul": _ternary, "xnor_matmul": _xnor, "scan_forward": _scan, "scan_backward": _scan_backward,
        "act_quant": _act, "rmsnorm_quant": _norm, "rmsnorm_backward": _norm_backward, "swiglu_norm_quant": _swiglu,
        "swiglu_norm_backward": _swiglu_backward, "pack2": _pack, "pack3": _pack, "grad_input": _grad_input,
        "grad_weight": _grad_weight,
    }  # fmt: skip
    return make[case.kernel](case)


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Random values on the GPU."""
    return torch.randn(shape, dtype=dtype, device=DEVICE)


def _ternary(case: Case) -> Ready:
    x, weight = normal(case.m, case.k), normal(case.n, case.k)
    gamma = weight.float().abs().mean()
    codes, scales = act_quant(x)
    packed = pack2(weight, gamma)
    exact = _exact_product(codes, reference.unpack2(packed))
    wanted = exact * (gamma.double() / scales.double())[:, None]
    call = lambda: ternary_matmul(codes, scales, packed, gamma, torch.bfloat16)  # noqa: E731
    baselines: dict[str, Callable[[], Any]] = {"cuBLAS bf16": lambda: F.linear(x, weight)}
    baselines |= _gemlite(x, reference.unpack2(packed), case)
    return Ready(call, (call(),), (wanted,), BF16, baselines)


def _exact_product(left: Tensor, right: Tensor) -> Tensor:
    """float64 product of integers, [M, N], in pieces of the outputs that fit in memory."""
    return torch.cat([left.double() @ part.double().T for part in right.split(4096)], 1)


def _gemlite(x: Tensor, codes: Tensor, case: Case) -> dict[str, Callable[[], Any]]:
    """gemlite's 2-bit kernel (weights in groups of K, fp16) where it is installed."""
    if not installed("gemlite"):
        return {}
    half = x.half()

    def make() -> Callable[[], Any]:
        import gemlite  # an optional baseline

        layer = gemlite.GemLiteLinear(
            2, case.k, in_features=case.k, out_features=case.n, input_dtype=gemlite.DType.FP16,
            output_dtype=gemlite.DType.FP16,
        )  # fmt: skip
        ones = torch.ones(case.n, 1, dtype=torch.float16, device=DEVICE)
        layer.pack((codes + 1).to(torch.uint8), scales=ones, zeros=ones, bias=None)
        return lambda: layer(half)

    return optional("gemlite 2 bit", make)


def _xnor(case: Case) -> Ready:
    x, weight = normal(case.m, case.k), normal(case.n, case.k)
    beta, alpha = x.abs().float().mean(1), weight.abs().float().mean(1)
    x_bits, w_bits = pack1(x), pack1(weight)
    wanted = _exact_product(reference.unpack1(x_bits), reference.unpack1(w_bits)) * beta.double()[:, None] * alpha
    call = lambda: xnor_matmul(x_bits, w_bits, beta, alpha, torch.bfloat16)  # noqa: E731
    return Ready(call, (call(),), (wanted,), BF16, {"cuBLAS bf16": lambda: F.linear(x, weight)})


def _scan_inputs(case: Case) -> tuple[Tensor, Tensor]:
    shape = (case.batch, case.m // case.batch, case.k)
    return normal(*shape, dtype=torch.float32).sigmoid(), normal(*shape, dtype=torch.float32)


def _scan(case: Case) -> Ready:
    forget, kept = _scan_inputs(case)
    call = lambda: mlgru_scan(forget, kept)  # noqa: E731
    return Ready(call, (call(),), (reference.mlgru_scan(forget.double(), kept.double()),), FP32, _fla(forget, kept))


def _fla(forget: Tensor, kept: Tensor) -> dict[str, Callable[[], Any]]:
    """flash-linear-attention's HGRN scan, the same recurrence with logarithms of the gate, where it is installed."""
    if not installed("fla"):
        return {}
    gate = forget.log()

    def make() -> Callable[[], Any]:
        from fla.ops.hgrn import chunk_hgrn  # an optional baseline

        return lambda: chunk_hgrn(kept, gate)[0]

    return optional("fla hgrn", make)


def _scan_backward(case: Case) -> Ready:
    forget, kept = (value.requires_grad_() for value in _scan_inputs(case))
    grad = torch.randn_like(kept)
    h = mlgru_scan(forget, kept)
    call = lambda: torch.autograd.grad(h, (forget, kept), grad, retain_graph=True)  # noqa: E731
    exact = reference.mlgru_scan(forget.detach().double(), kept.detach().double())
    # g_t = dh_t + f_(t+1) g_(t+1): the recurrence on the reversed sequence, its gates one step later
    later = torch.cat([torch.zeros_like(forget[:, :1]), forget.detach().flip(1)[:, :-1]], 1)
    du = reference.mlgru_scan(later.double(), grad.double().flip(1)).flip(1)
    before = torch.cat([torch.zeros_like(exact[:, :1]), exact[:, :-1]], 1)
    return Ready(call, call(), (du * before, du), FP32, {})


def _act(case: Case) -> Ready:
    x = normal(case.m, case.k)
    wanted = reference.act_quant(x)
    call = lambda: act_quant(x)  # noqa: E731
    return Ready(call, call(), tuple(part.double() for part in wanted), EXACT, {})


def _norm(case: Case) -> Ready:
    x, gain = normal(case.m, case.k), normal(case.k, dtype=torch.float32)
    inverse = (x.double().square().mean(-1) + EPS).rsqrt()
    call = lambda: rmsnorm_quant(x, gain, EPS)  # noqa: E731
    codes, scales, _, inverses = call()
    wanted = x.double() * inverse[:, None] * gain.double()
    values = codes / scales[:, None]
    baselines: dict[str, Callable[[], Any]] = {
        "torch rms_norm, not quantised": lambda: F.rms_norm(x, (case.k,), gain.bfloat16(), EPS)
    }
    return Ready(call, (values, inverses), (wanted, inverse), CODE, baselines)


def _norm_backward(case: Case) -> Ready:
    x, gain, grad = normal(case.m, case.k), normal(case.k, dtype=torch.float32), normal(case.m, case.k)
    inverses = rmsnorm_quant(x, gain, EPS)[3]
    leaf, gain64 = x.double().requires_grad_(), gain.double().requires_grad_()
    normalised = leaf * (leaf.square().mean(-1, keepdim=True) + EPS).rsqrt() * gain64
    wanted = torch.autograd.grad(normalised, (leaf, gain64), grad.double())
    call = lambda: rmsnorm_backward(grad, x, gain, inverses)  # noqa: E731
    return Ready(call, call(), wanted, BF16, {})


def _swiglu(case: Case) -> Ready:
    gate, up, gain = normal(case.m, case.k), normal(case.m, case.k), normal(case.k, dtype=torch.float32)
    call = lambda: swiglu_norm_quant(gate, up, gain, EPS)  # noqa: E731
    codes, scales, inverses = call()
    product = F.silu(gate.double()) * up.double()
    inverse = (product.square().mean(-1) + EPS).rsqrt()
    wanted = product * inverse[:, None] * gain.double()
    baselines: dict[str, Callable[[], Any]] = {"torch silu x up, nothing else": lambda: F.silu(gate) * up}
    if installed("liger_kernel"):

        def make() -> Callable[[], Any]:
            from liger_kernel.ops.swiglu import LigerSiLUMulFunction  # an optional baseline

            return lambda: LigerSiLUMulFunction.apply(gate, up)

        baselines |= optional("Liger silu x up, nothing else", make)
    return Ready(call, (codes / scales[:, None], inverses), (wanted, inverse), CODE, baselines)


def _swiglu_backward(case: Case) -> Ready:
    gate, up, grad = (normal(case.m, case.k) for _ in range(3))
    gain = normal(case.k, dtype=torch.float32)
    inverses = swiglu_norm_quant(gate, up, gain, EPS)[2]
    leaves = [value.double().requires_grad_() for value in (gate, up, gain)]
    product = F.silu(leaves[0]) * leaves[1]
    normalised = product * (product.square().mean(-1, keepdim=True) + EPS).rsqrt() * leaves[2]
    wanted = torch.autograd.grad(normalised, leaves, grad.double())
    call = lambda: swiglu_norm_backward(grad, gate, up, gain, inverses)  # noqa: E731
    return Ready(call, call(), wanted, BF16, {})


def _pack(case: Case) -> Ready:
    weight = normal(case.n, case.k, dtype=torch.float32)
    gamma = weight.abs().mean()
    kernel, twin = (pack2, reference.pack2) if case.kernel == "pack2" else (pack3, reference.pack3)
    call = lambda: kernel(weight, gamma)  # noqa: E731
    return Ready(call, (call(),), (twin(reference.ternary_codes(weight, gamma)).double(),), EXACT, {})


def _backward_inputs(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, weight, grad = normal(case.m, case.k), normal(case.n, case.k, dtype=torch.float32), normal(case.m, case.n)
    gamma = weight.abs().mean()
    return (*act_quant(x), weight, gamma, pack2(weight, gamma), grad)


def _grad_input(case: Case) -> Ready:
    _, _, weight, gamma, packed, grad = _backward_inputs(case)
    wanted = grad.double() @ reference.unpack2(packed).double() * gamma.double()
    half = weight.bfloat16()
    call = lambda: grad_input(grad, packed, gamma, torch.bfloat16)  # noqa: E731
    return Ready(call, (call(),), (wanted,), BF16, {"cuBLAS bf16": lambda: grad @ half})


def _grad_weight(case: Case) -> Ready:
    codes, scales, weight, _, _, grad = _backward_inputs(case)
    values = codes.double() / scales.double()[:, None]
    half = values.bfloat16()
    call = lambda: grad_weight(grad, codes, scales, weight)  # noqa: E731
    return Ready(call, (call(),), (grad.double().T @ values,), BF16, {"cuBLAS bf16": lambda: grad.T @ half})
