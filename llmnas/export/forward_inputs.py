"""What transformers' callers pass to a forward, in our terms; travels inside exported checkpoints.

Shapes: B batch, T new tokens, S tokens read with them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llmnas.export.decoding_cache import DecodingCache


def document_numbers(
    mask: Tensor | None, positions: Tensor | None, batch: int, new: int, cache: DecodingCache | None
) -> Tensor | None:
    """[B, S] numbers of the documents that no layer crosses, padding one of its own; None where there is one a row.

    Positions count only relative to each other (RoPE), so a row may begin anywhere. Without a mask and a cache a jump
    begins another document, as transformers reads packed rows.

    Args:
        mask: [B, S], 0 at padding, which stands on one side of a row; or None.
        positions: [B or 1, T], or None for one after the other.
        batch: B.
        new: T.
        cache: what was read before.

    Raises:
        ValueError: padding on both sides or in the middle, a mask of another size, or positions that jump elsewhere.
    """
    read = new + (0 if cache is None else cache.inner.length)
    present = _present(mask, read, cache)
    documents = None if present is None else present.long()
    if positions is None:
        if cache is not None and cache.begins is not None:
            raise ValueError("position_ids: the text before had some, so they must be given on")
        return documents
    if positions.dim() != 2 or positions.shape[1] != new or positions.shape[0] not in (1, batch):
        raise ValueError(f"position_ids: are {list(positions.shape)}, must be [{batch}, {new}]")
    if mask is None and cache is None:
        jumps = (positions[:, 1:] - positions[:, :-1] != 1).long().cumsum(1)
        packed = nn.functional.pad(jumps, (1, 0)).expand(batch, new)
        return packed if bool(jumps.any()) else None
    _require_in_order(positions.expand(batch, new), present, cache)
    return documents


def _require_in_order(positions: Tensor, present: Tensor | None, cache: DecodingCache | None) -> None:
    """Refuse positions [B, T] that do not count the tokens of a text one after the other, from wherever it begins."""
    batch, new = positions.shape
    if present is None:
        present = positions.new_ones(batch, new + (0 if cache is None else cache.inner.length), dtype=torch.bool)
    begins = positions - (present.long().cumsum(1) - 1)[:, -new:]
    text = present[:, -new:]
    if cache is not None and cache.inner.length:
        begin = begins.new_zeros(batch, 1) if cache.begins is None else cache.begins
    else:
        begin = begins.gather(1, text.long().argmax(1, keepdim=True))
        if cache is not None and bool(begin.any()):
            cache.begins = begin
    if bool(((begins != begin) & text).any()):
        raise ValueError("position_ids: jump within a text; they must count its tokens one after the other")


def _present(mask: Tensor | None, read: int, cache: DecodingCache | None) -> Tensor | None:
    """[B, S] where there is text; None where there is no padding."""
    if mask is None:
        if cache is not None and cache.padded:
            raise ValueError("attention_mask: the text before was padded, so the mask must be given on")
        return None
    if mask.dim() != 2 or mask.shape[1] != read:
        raise ValueError(f"attention_mask: is {list(mask.shape)}, must be [batch, {read}] for all tokens read so far")
    present = mask != 0
    if present.all():
        return None
    if int((present[:, 1:] != present[:, :-1]).sum(1).max()) > 1:
        raise ValueError("attention_mask: padding in the middle of a row; pad on the left (tokenizer.padding_side)")
    if cache is not None:
        cache.padded = True
    return present


def one_cache(kwargs: dict[str, Any]) -> DecodingCache | None:
    """Take the cache out of the arguments, under its name of today or of transformers up to 5.23.

    Raises:
        ValueError: both are given, or it is another model's.
    """
    given = [kwargs.pop(name, None) for name in ("cache", "past_key_values")]
    found = [cache for cache in given if cache is not None]
    if len(found) > 1:
        raise ValueError("cache and past_key_values are two names of one thing; give one")
    if found and not isinstance(found[0], DecodingCache):
        raise ValueError(f"cache: is a {type(found[0]).__name__}; give what an earlier call of this model returned")
    return found[0] if found else None
