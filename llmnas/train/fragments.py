"""Where the weights lie in the tensors that an optimizer updates, and a block of a weight as a view of such a tensor.

Without ZeRO an optimizer holds the weights themselves. With it, every process holds flat tensors into which runs of
the weights' elements (row by row) were copied, and a block of a weight is a few strided ranges of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor, nn

from llmnas.errors import RunError
from llmnas.nn.elastic_linear import grids
from llmnas.supernet import Box


class Fragment(NamedTuple):
    """Elements `first` to `first + length` of the weight `name`, row by row, from `offset` of a tensor on.

    `shape` is the one in which the weight is sliced, see `grids`.
    """

    name: str
    shape: tuple[int, ...]
    first: int
    length: int
    offset: int


class View(NamedTuple):
    """Arguments of `as_strided` on a flat tensor; `stride` 1 alone is a run of neighbours."""

    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


Held = Mapping[Tensor, tuple[Fragment, ...]]
"""What every tensor of an optimizer holds."""


def whole_weights(model: nn.Module) -> Held:
    """Of an optimizer that holds the weights themselves."""
    shapes = grids(model)
    return {p: (Fragment(name, shapes.get(name, p.shape), 0, p.numel(), 0),) for name, p in model.named_parameters()}


def partitions(model: nn.Module, zero: Any, stage: int) -> Held:
    """Of DeepSpeed's ZeRO optimizer on this process.

    Raises:
        RunError: DeepSpeed does not say where a weight lies, or not where it is.
    """
    held: dict[Tensor, list[Fragment]] = {}
    shapes = grids(model)
    for name, parameter in model.named_parameters():
        try:
            flat, found = (_at_stage_3 if stage == 3 else _at_stage_1_or_2)(name, parameter, zero)
        except (AttributeError, KeyError, IndexError) as error:
            raise RunError(
                f"train.update: active at ZeRO stage {stage}: DeepSpeed says nothing of where {name} lies ({error!r}); "
                "use update: all"
            ) from None
        if flat is not None and found.length:
            held.setdefault(flat, []).append(found._replace(shape=shapes.get(name, found.shape)))
    return {flat: tuple(found) for flat, found in held.items()}


_NOTHING = Fragment("", (), 0, 0, 0)


def _at_stage_1_or_2(name: str, parameter: Tensor, zero: Any) -> tuple[Tensor | None, Fragment]:
    mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:  # wholly with other processes
        return None, _NOTHING
    flat: Tensor = zero.optimizer.param_groups[mapping.param_group_index]["params"][0]
    lies, taken = mapping.hp_fragment_address, mapping.lp_fragment_address
    if mapping.hp_fragment.data_ptr() != flat[lies.start :].data_ptr():
        raise RunError(f"train.update: active: {name} does not lie where DeepSpeed says; use update: all")
    return flat, Fragment(name, tuple(parameter.shape), taken.start, taken.numel, lies.start)


def _at_stage_3(name: str, parameter: Tensor, zero: Any) -> tuple[Tensor | None, Fragment]:
    group, offset, share = zero.grad_position[zero.get_param_id(parameter)]
    shape: Any = parameter.ds_shape  # type: ignore[attr-defined]
    first = share * zero._get_param_partition_rank(parameter)
    # the last shares are filled up
    length = max(0, min(share, math.prod(shape) - first))
    return zero.fp32_partitioned_groups_flat[group], Fragment(name, tuple(shape), first, length, offset)


def views(
    fragments: Iterable[Fragment], boxes: Mapping[str, tuple[Box, ...]] | None, at_most: int | None = None
) -> tuple[View, ...]:
    """The parts of a tensor that belong to the boxes of the weights in it, in the order of the tensor.

    Args:
        boxes: by name of a weight, without overlap; None for all of every weight.
        at_most: elements of a part; runs of neighbours may be longer. A row is never cut.
    """
    found: list[View] = []
    for fragment in fragments:
        whole = (tuple((0, length) for length in fragment.shape),)
        for box in whole if boxes is None else boxes.get(fragment.name, ()):
            found += _views(fragment, box)
    joined = _joined(sorted(found))
    return tuple(joined if at_most is None else (part for view in joined for part in _split(view, at_most)))


def _split(view: View, at_most: int) -> list[View]:
    """Some rows of the first axis each."""
    rows, inner = view.size[0], math.prod(view.size[1:])
    if view.stride == (1,) or rows * inner <= at_most:
        return [view]
    step = max(1, at_most // inner)
    return [
        View(view.offset + row * view.stride[0], (min(step, rows - row), *view.size[1:]), view.stride)
        for row in range(0, rows, step)
    ]


@lru_cache(maxsize=65536)
def _views(fragment: Fragment, box: Box) -> tuple[View, ...]:
    """The part of a box that lies in a fragment."""
    found = []
    strides = [math.prod(fragment.shape[axis + 1 :]) for axis in range(len(fragment.shape))]
    for part in _range_boxes(fragment.shape, fragment.first, fragment.first + fragment.length):
        both = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(part, box, strict=True)]
        if all(first < end for first, end in both):
            start = sum(first * stride for (first, _), stride in zip(both, strides, strict=True))
            sizes = [end - first for first, end in both]
            found.append(_merged(fragment.offset + start - fragment.first, sizes, strides))
    return tuple(found)


def _range_boxes(shape: tuple[int, ...], first: int, end: int) -> list[Box]:
    """Elements `first` to `end` of a tensor, row by row, as boxes: 2 n - 1 at most for n axes."""
    if len(shape) == 1:
        return [((first, end),)]
    inner = math.prod(shape[1:])
    (row, begin), (last, rest) = divmod(first, inner), divmod(end, inner)
    if row == last:
        return [((row, row + 1), *box) for box in _range_boxes(shape[1:], begin, rest)] if begin < rest else []
    found: list[Box] = []
    if begin:
        found += [((row, row + 1), *box) for box in _range_boxes(shape[1:], begin, inner)]
        row += 1
    if row < last:
        found.append(((row, last), *((0, length) for length in shape[1:])))
    if rest:
        found += [((last, last + 1), *box) for box in _range_boxes(shape[1:], 0, rest)]
    return found


def _merged(offset: int, sizes: list[int], strides: list[int]) -> View:
    """With as few axes as possible."""
    axes: list[tuple[int, int]] = []
    for size, stride in zip(sizes, strides, strict=True):
        if size == 1:
            continue
        if axes and axes[-1][1] == size * stride:
            axes[-1] = (axes[-1][0] * size, stride)
        else:
            axes.append((size, stride))
    axes = axes or [(1, 1)]
    return View(offset, tuple(size for size, _ in axes), tuple(stride for _, stride in axes))


def _joined(ordered: list[View]) -> list[View]:
    """Runs of neighbours that follow each other become one."""
    found: list[View] = []
    for view in ordered:
        before = found[-1] if found else None
        if before and before.stride == view.stride == (1,) and before.offset + before.size[0] == view.offset:
            found[-1] = View(before.offset, (before.size[0] + view.size[0],), (1,))
        else:
            found.append(view)
    return found
