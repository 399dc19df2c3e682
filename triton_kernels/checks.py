"""What a public function checks before it launches: one line says what is wrong and what is allowed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import torch
import triton
from torch import Tensor

GROUP = 64  # weights of a packed group
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
MAX_ROW = 32768  # widest row that one program of the forward kernels holds in registers


def require(holds: bool, message: str) -> None:
    """Raise `ValueError(message)` unless `holds`."""
    if not holds:
        raise ValueError(message)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1 when triton was imported)."""
    return bool(triton.knobs.runtime.interpret)


def tensor(name: str, value: Tensor, shape: tuple[int | None, ...], dtypes: Iterable[torch.dtype]) -> None:
    """Check a kernel's argument: shape (None: any size), dtype, and a last axis without gaps.

    Raises:
        ValueError: one line that names the argument.
    """
    sizes = tuple(value.shape)
    fits = len(sizes) == len(shape) and all(want in (None, have) for want, have in zip(shape, sizes, strict=True))
    wanted = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
    require(fits, f"{name}: shape {list(sizes)}, must be {wanted}")
    allowed = tuple(dtypes)
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
    require(value.dtype in allowed, f"{name}: dtype {str(value.dtype).removeprefix('torch.')}, must be {names}")
    gapless = value.dim() == 0 or value.shape[-1] <= 1 or value.stride(-1) == 1
    require(
        gapless, f"{name}: last axis has stride {value.stride(-1) if value.dim() else 0}, must be 1 (.contiguous())"
    )


def same_device(first: str, owner: Tensor, **others: Tensor | None) -> None:
    """All on the device of `owner`, and that is one a kernel can run on.

    Raises:
        ValueError: a tensor elsewhere, or no GPU tensor outside the interpreter.
    """
    for name, other in others.items():
        found = other is None or other.device == owner.device
        require(found, f"{name}: on {other.device if other is not None else ''}, {first} is on {owner.device}")
    able = owner.is_cuda or interpreted()
    require(able, f"{first}: on {owner.device}, a Triton kernel needs a GPU (llmnas.nn.kernels picks the path)")


def whole_groups(name: str, size: int, group: int = GROUP) -> None:
    """`size` weights are whole groups.

    Raises:
        ValueError: the last group would be cut.
    """
    require(size > 0 and size % group == 0, f"{name}: {size} cuts a group, must be a positive multiple of {group}")


def row_block(name: str, size: int) -> int:
    """Power of two that holds a row of `size`.

    Raises:
        ValueError: no row, or one too wide for a program.
    """
    require(1 <= size <= MAX_ROW, f"{name}: rows of {size}, must be 1 to {MAX_ROW}")
    return int(triton.next_power_of_2(size))


def device_of(owner: Tensor) -> contextlib.AbstractContextManager[object]:
    """Launches inside go to the device of `owner`, also when it is not the current one."""
    return torch.cuda.device(owner.device) if owner.is_cuda else contextlib.nullcontext()
