"""The MLGRU recurrence (Zhu et al. 2024, section 3.3.1): h_t = f_t h_(t-1) + u_t, element by element.

Inside a chunk of time an associative scan of pairs, (f1, u1) then (f2, u2) = (f1 f2, f2 u1 + u2) (Blelloch 1990);
between chunks one carried row. At the start of a document only the coefficient f becomes zero; u was formed before.
Backward runs the same scan from the end: g_t = dh_t + f_(t+1) g_(t+1), du = g, df_t = g_t h_(t-1), dstate = f_0 g_0.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmnas.triton_kernels import tiles
from llmnas.triton_kernels.checks import FLOATS, device_of, require, same_device, tensor

MAX_SEQUENCES = 65535  # programs that CUDA has along the second axis of a launch


@triton.jit
def compose(f1, u1, f2, u2):  # type: ignore[no-untyped-def]
    """First step 1, then step 2, as one step."""
    return f1 * f2, f2 * u1 + u2


@triton.jit
def scan_forward_kernel(  # type: ignore[no-untyped-def]
    forget, kept, state, starts, h, time, width, f_batch, f_time, u_batch, u_time,
    STATE: tl.constexpr, STARTS: tl.constexpr, ACC: tl.constexpr,  # noqa: N803
    BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """BLOCK_W channels of one sequence, all its time."""
    batch = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    step = tl.arange(0, BLOCK_T)
    carry = tl.zeros([BLOCK_W], ACC)
    if STATE:
        carry = tl.load(state + batch * width + channel, mask=channel < width, other=0.0).to(ACC)
    for first in range(0, time, BLOCK_T):
        t = (first + step).to(tl.int64)[:, None]
        inside = (t < time) & (channel < width)[None, :]
        # steps behind the end keep what is carried
        f = tl.load(forget + batch * f_batch + t * f_time + channel[None, :], mask=inside, other=1.0).to(ACC)
        u = tl.load(kept + batch * u_batch + t * u_time + channel[None, :], mask=inside, other=0.0).to(ACC)
        if STARTS:
            begins = tl.load(starts + batch * time + t, mask=t < time, other=0)
            f = tl.where(begins != 0, 0.0, f)
        f, u = tl.associative_scan((f, u), 0, compose)
        value = u + f * carry[None, :]
        tl.store(h + (batch * time + t) * width + channel[None, :], value.to(h.dtype.element_ty), mask=inside)
        carry = tl.sum(tl.where(step[:, None] == BLOCK_T - 1, value, 0.0), 0)


@triton.jit
def scan_backward_kernel(  # type: ignore[no-untyped-def]
    grad, forget, h, state, starts, df, du, dstate, time, width, f_batch, f_time, g_batch, g_time,
    STATE: tl.constexpr, STARTS: tl.constexpr, ACC: tl.constexpr,  # noqa: N803
    BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """The same channels, last chunk first."""
    batch = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    step = tl.arange(0, BLOCK_T)
    real = (channel < width)[None, :]
    carry = tl.zeros([BLOCK_W], ACC)  # f_(t+1) g_(t+1) of the chunk behind
    before = tl.zeros([BLOCK_W], ACC)
    if STATE:
        before = tl.load(state + batch * width + channel, mask=channel < width, other=0.0).to(ACC)
    chunks = tl.cdiv(time, BLOCK_T)
    for chunk in range(0, chunks):
        first = (chunks - 1 - chunk) * BLOCK_T
        t = (first + step).to(tl.int64)[:, None]
        inside = (t < time) & real
        last = step[:, None] == BLOCK_T - 1
        # inside the chunk a step hands back by the NEXT step's coefficient; its last row takes the carry instead
        onward = (t + 1 < time) & real & (last == 0)
        f_next = tl.load(forget + batch * f_batch + (t + 1) * f_time + channel[None, :], mask=onward, other=0.0).to(ACC)
        g = tl.load(grad + batch * g_batch + t * g_time + channel[None, :], mask=inside, other=0.0).to(ACC)
        f = tl.load(forget + batch * f_batch + t * f_time + channel[None, :], mask=inside, other=0.0).to(ACC)
        at = (batch * time + t) * width + channel[None, :]
        h_before = tl.load(h + at - width, mask=inside & (t > 0), other=0.0).to(ACC)
        h_before = tl.where(t == 0, before[None, :], h_before)
        if STARTS:
            next_begins = tl.load(starts + batch * time + t + 1, mask=t + 1 < time, other=0)
            f_next = tl.where(next_begins != 0, 0.0, f_next)
            begins = tl.load(starts + batch * time + t, mask=t < time, other=0)
            f = tl.where(begins != 0, 0.0, f)
            h_before = tl.where(begins != 0, 0.0, h_before)
        g += tl.where(last, carry[None, :], 0.0)
        _, g = tl.associative_scan((f_next, g), 0, compose, reverse=True)
        tl.store(du + at, g.to(du.dtype.element_ty), mask=inside)
        tl.store(df + at, (g * h_before).to(df.dtype.element_ty), mask=inside)
        carry = tl.sum(tl.where(step[:, None] == 0, f * g, 0.0), 0)
    if STATE:
        tl.store(dstate + batch * width + channel, carry.to(dstate.dtype.element_ty), mask=channel < width)


def launch_sizes(width: int, batch: int, dtype: torch.dtype) -> tuple[tuple[int, int], dict[str, Any]]:
    """Grid and constants; fp64 tensors are summed in fp64, all others in fp32."""
    steps, channels, warps = tiles.scan(width)
    acc = tl.float64 if dtype == torch.float64 else tl.float32
    constants = {"ACC": acc, "BLOCK_T": steps, "BLOCK_W": channels, "num_warps": warps}
    return (triton.cdiv(width, channels), batch), constants


class MLGRUScan(torch.autograd.Function):
    """`mlgru_scan` with its backward kernel; keeps f, h and the state."""

    @staticmethod
    def forward(ctx: Any, forget: Tensor, kept: Tensor, state: Tensor | None, starts: Tensor | None) -> Tensor:
        """Arguments as checked in `mlgru_scan`."""
        batch, time, width = kept.shape
        h = torch.empty((batch, time, width), dtype=kept.dtype, device=kept.device)
        ctx.save_for_backward(forget, h, state, starts)
        if h.numel():
            grid, constants = launch_sizes(width, batch, kept.dtype)
            with device_of(kept):
                scan_forward_kernel[grid](
                    forget, kept, kept if state is None else state, kept if starts is None else starts, h, time, width,
                    forget.stride(0), forget.stride(1), kept.stride(0), kept.stride(1),
                    STATE=state is not None, STARTS=starts is not None, **constants,
                )  # fmt: skip
        return h

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        """Gradients of forget, kept and state."""
        forget, h, state, starts = ctx.saved_tensors
        batch, time, width = h.shape
        grad = grad if grad.stride(-1) == 1 or width <= 1 else grad.contiguous()
        df = torch.empty((batch, time, width), dtype=forget.dtype, device=h.device)
        du = torch.empty((batch, time, width), dtype=h.dtype, device=h.device)
        if not h.numel():
            return df, du, None if state is None else torch.zeros_like(state), None
        dstate = None if state is None else torch.empty((batch, width), dtype=state.dtype, device=h.device)
        grid, constants = launch_sizes(width, batch, h.dtype)
        with device_of(h):
            scan_backward_kernel[grid](
                grad, forget, h, h if state is None else state, h if starts is None else starts, df, du,
                du if dstate is None else dstate, time, width,
                forget.stride(0), forget.stride(1), grad.stride(0), grad.stride(1),
                STATE=state is not None, STARTS=starts is not None, **constants,
            )  # fmt: skip
        return df, du, dstate, None


def mlgru_scan(forget: Tensor, kept: Tensor, state: Tensor | None = None, starts: Tensor | None = None) -> Tensor:
    """All states of the recurrence, differentiable in forget, kept and state.

    Args:
        forget: f, [B, T, W] fp32, bf16, fp16 or fp64; leading axes may have gaps.
        kept: u = (1 - f) c, [B, T, W], same dtype.
        state: [B, W] before the first step, or None for zeros.
        starts: bool [B, T], steps that forget everything before them; sequences of several lengths share a row.

    Returns:
        h, [B, T, W].

    Raises:
        ValueError: wrong shape, dtype, stride or device.
    """
    dtypes = (*FLOATS, torch.float64)
    tensor("kept", kept, (None, None, None), dtypes)
    batch, time, width = kept.shape
    require(batch <= MAX_SEQUENCES, f"kept: {batch} sequences, at most {MAX_SEQUENCES} at once")
    tensor("forget", forget, (batch, time, width), (kept.dtype,))
    if state is not None:
        tensor("state", state, (batch, width), dtypes)
        require(state.is_contiguous(), "state: has gaps, must be contiguous")
    if starts is not None:
        tensor("starts", starts, (batch, time), (torch.bool,))
        require(starts.is_contiguous(), "starts: has gaps, must be contiguous")
    same_device("kept", kept, forget=forget, state=state, starts=starts)
    result: Tensor = MLGRUScan.apply(forget, kept, state, starts)  # type: ignore[no-untyped-call]
    return result
