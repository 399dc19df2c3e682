"""Our cache in the form that transformers' generation handles; travels inside exported checkpoints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache as TransformersCache

from llmnas.nn.cache import Cache, KeyValues, Mark, State
from llmnas.space.architecture import Architecture


class DecodingCache(TransformersCache):  # type: ignore[misc]
    """What one architecture remembers of the tokens read so far.

    Args:
        arch: the architecture that reads.
        inner: from `Transformer.new_cache(arch, ...)`.
        batch: sequences in it.
    """

    def __init__(self, arch: Architecture, inner: Cache, batch: int) -> None:
        super().__init__(layers=[])
        self.arch = arch
        self.inner = inner
        self.batch = batch
        self.padded = False  # whether a row began with padding
        self.begins: Tensor | None = None  # [batch, 1] the position of each row's first token; None for 0

    def serve(self, arch: Architecture) -> None:
        """Go on with another architecture.

        Defined where layers are only left out: each one that is left has read every token. A layer that comes
        back has not, and another width means other keys, values and states.

        Raises:
            ValueError: another width, or a layer that has not read the text; with what to do instead.
        """
        refusal = self.refusal(arch)
        if refusal is not None:
            raise ValueError(f"cache: {refusal}; read the text again with a new cache")
        for i, kept in enumerate(arch.layers):
            if kept is None:
                self.inner.layers[i] = None
        self.arch = replace(self.arch, layers=arch.layers)

    def refusal(self, arch: Architecture) -> str | None:
        """Why another architecture cannot go on, in words; None where it can."""
        if arch.hidden_size != self.arch.hidden_size:
            return f"hidden_size changes from {self.arch.hidden_size} to {arch.hidden_size} in the middle of a text"
        for i, spec in arch.kept:
            before = self.arch.layers[i]
            if before is None:
                return f"layer {i} has not read the text before"
            if spec != before:
                return f"the sizes of layer {i} change in the middle of a text"
        return None

    # transformers asks its list of layers, which is empty here, since ours hold their own

    def __len__(self) -> int:
        return len(self.inner.layers)

    @property
    def is_linear(self) -> list[bool]:
        """[False]: generation then cuts what was read from the text that it is given."""
        return [False]

    @property
    def is_sliding(self) -> list[bool]:
        """Every layer remembers the whole text."""
        return [False] * len(self)

    @property
    def is_compileable(self) -> bool:
        """It grows, so nothing is compiled for it."""
        return False

    @property
    def is_initialized(self) -> bool:
        """Always."""
        return True

    @property
    def is_croppable(self) -> bool:
        """Whether tokens can be forgotten: a recurrent state cannot go back."""
        return not any(isinstance(layer, State) for layer in self.inner.layers)

    @property
    def batch_size(self) -> int:
        """Sequences in it."""
        return self.batch

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 (transformers' signature)
        """Tokens read so far, the same for every layer."""
        return self.inner.length

    def get_max_length(self, layer_idx: int | None = None) -> int:  # noqa: ARG002
        """-1: it grows."""
        return -1

    get_max_cache_shape = get_max_length  # its name up to 4.57

    def crop(self, max_length: int) -> None:
        """Forget the last `-max_length` tokens; a positive one is how many to keep, as transformers 4 counts.

        Raises:
            ValueError: a layer is recurrent, or fewer tokens were read.
        """
        forget = -max_length if max_length <= 0 else max(self.inner.length - max_length, 0)
        if not forget:
            return
        if not self.is_croppable:
            raise ValueError("cache: an MLGRU layer cannot forget tokens; generate without an assistant")
        self.inner.back_to(Mark(self.inner.length - forget, (None,) * len(self.inner.layers)))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row beam_idx[i] was."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, [new batch] int64."""
        self.inner.select(indices)
        self.begins = None if self.begins is None else self.begins[indices]
        self.batch = len(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times, one beside the other."""
        device = next((one.keys.device for one in self.inner.layers if isinstance(one, KeyValues)), None)
        self.batch_select_indices(torch.arange(self.batch, device=device).repeat_interleave(repeats))

    def reset(self) -> None:
        """Forget everything."""
        self.inner.back_to(Mark(0, (None,) * len(self.inner.layers)))
        self.padded, self.begins = False, None

    def activate_past_recording(self) -> None:
        """Nothing to do: keys and values are kept until they are cropped."""

    def __repr__(self) -> str:
        return f"DecodingCache({self.arch.id}, {self.inner.length} tokens)"

    def update(self, *_args: Any, **_kwargs: Any) -> Any:
        """Refused: the layers of the model write for themselves."""
        raise TypeError("a DecodingCache is written by the layers of its model, not by update")
