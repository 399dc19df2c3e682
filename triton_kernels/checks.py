"""What a public function checks before it launches: one line says what is wrong and what is allowed.

Every call pays for its checks, so messages are made only for what fails. Triton is imported by what asks it: the door
on a CPU (`llmnas.nn.kernels`) makes the same checks without it.
"""

from __future__ import annotations

import contextlib

import torch
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
    import triton

    return bool(triton.knobs.runtime.interpret)


def kind(name: str, value: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Check an argument's dtype.

    Raises:
        ValueError: one line that names the argument.
    """
    if value.dtype not in dtypes:
        found, *names = (str(dtype).removeprefix("torch.") for dtype in (value.dtype, *dtypes))
        raise ValueError(f"{name}: dtype {found}, must be {', '.join(names)}")


def _differ(want: int | None, have: int) -> bool:
    return want is not None and want != have


def form(name: str, value: Tensor, shape: tuple[int | None, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    """Check an argument's shape (None: any size) and dtype.

    Raises:
        ValueError: one line that names the argument.
    """
    sizes = value.shape
    if sizes != shape and (len(sizes) != len(shape) or any(map(_differ, shape, sizes))):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: shape {list(sizes)}, must be [{wanted}]")
    kind(name, value, dtypes)


def tensor(name: str, value: Tensor, shape: tuple[int | None, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    """`form`, and a last axis without gaps.

    Raises:
        ValueError: one line that names the argument.
    """
    form(name, value, shape, dtypes)
    if shape and value.stride(-1) != 1 and value.shape[-1] > 1:
        raise ValueError(f"{name}: last axis has stride {value.stride(-1)}, must be 1 (.contiguous())")


def number(name: str, value: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Check an argument that is one number, of any shape.

    Raises:
        ValueError: one line that names the argument.
    """
    if value.numel() != 1:
        raise ValueError(f"{name}: shape {list(value.shape)}, must hold one number")
    kind(name, value, dtypes)


def together(first: str, owner: Tensor, **others: Tensor | None) -> None:
    """All on the device of `owner`.

    Raises:
        ValueError: names the tensor that is elsewhere.
    """
    for name, other in others.items():
        if other is not None and other.device != owner.device:
            raise ValueError(f"{name}: on {other.device}, {first} is on {owner.device}")


def same_device(first: str, owner: Tensor, **others: Tensor | None) -> None:
    """All on the device of `owner`, and that is one a kernel can run on.

    Raises:
        ValueError: a tensor elsewhere, or no GPU tensor outside the interpreter.
    """
    together(first, owner, **others)
    if not (owner.is_cuda or interpreted()):
        raise ValueError(f"{first}: on {owner.device}, a Triton kernel needs a GPU (llmnas.nn.kernels picks the path)")


def whole_groups(name: str, size: int, group: int = GROUP) -> None:
    """`size` weights are whole groups.

    Raises:
        ValueError: the last group would be cut.
    """
    if size <= 0 or size % group:
        raise ValueError(f"{name}: {size} cuts a group, must be a positive multiple of {group}")


def row_block(name: str, size: int) -> int:
    """Power of two that holds a row of `size`.

    Raises:
        ValueError: no row, or one too wide for a program.
    """
    import triton

    require(1 <= size <= MAX_ROW, f"{name}: rows of {size}, must be 1 to {MAX_ROW}")
    return int(triton.next_power_of_2(size))


def device_of(owner: Tensor) -> contextlib.AbstractContextManager[object]:
    """Launches inside go to the device of `owner`, also when it is not the current one."""
    return torch.cuda.device(owner.device) if owner.is_cuda else contextlib.nullcontext()
