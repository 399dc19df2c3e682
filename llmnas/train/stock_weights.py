"""The weights of a Hugging Face folder, from the files that transformers would read; no pickle is opened."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmnas.errors import UserError
from llmnas.files import open_regular, parse_json, read_object, regular

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}
_LONGEST_HEADER = 16 << 20
"""Bytes of one file's list of tensors: about 100,000 tensors, ten times what the largest published models have."""
_UNUSED = ("rotary_emb.inv_freq", "attn.masked_bias")
"""Ends of names that old files carry and transformers leaves out."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: its file, the format of its numbers as safetensors calls it, its shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class StockWeights:
    """The tensors of a folder by name. Only their descriptions are read until one is asked for.

    Raises:
        UserError: no weights that can be read (with what is there instead), or damaged files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, StoredTensor] = {}
        for path in _files(folder):
            self.tensors |= {name: one for name, one in _described(path) if not name.endswith(_UNUSED)}

    @property
    def dtype(self) -> torch.dtype:
        """The format that most numbers are stored in."""
        sizes: dict[str, int] = {}
        for one in self.tensors.values():
            sizes[one.dtype] = sizes.get(one.dtype, 0) + math.prod(one.shape)
        return FLOATS.get(max(sizes, key=sizes.__getitem__, default="F32"), torch.float32)

    def shapes(self) -> dict[str, Tensor]:
        """Every tensor without its values."""
        self._require_floats()
        return {name: torch.empty(one.shape, device="meta") for name, one in self.tensors.items()}

    def read(self, names: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        """Tensors in float32, all of them or the named ones.

        Raises:
            UserError: damaged files, numbers that are no floats, or values that are not finite.
        """
        wanted = self.tensors if names is None else {name: self.tensors[name] for name in names}
        self._require_floats()
        found: dict[str, Tensor] = {}
        for path in sorted({one.file for one in wanted.values()}):
            try:
                with safe_open(regular(path), "pt") as file:
                    for name, one in wanted.items():
                        if one.file == path:
                            found[name] = file.get_tensor(name).float()
            except SafetensorError as error:
                raise UserError(f"{path}: damaged weights ({error})") from None
        for name, weight in found.items():
            if not weight.isfinite().all():
                raise UserError(f"{wanted[name].file}: {name} holds NaN or infinity; the model is damaged")
        return found

    def _require_floats(self) -> None:
        for name, one in self.tensors.items():
            if one.dtype not in FLOATS:
                raise UserError(
                    f"{one.file}: {name} is stored as {one.dtype}; allowed: {', '.join(FLOATS)} "
                    "(save a quantised model as bfloat16 first)"
                )


def _files(folder: Path) -> list[Path]:
    """A single file wins over an index, as in transformers."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.exists():
        raise UserError(_what_is_there_instead(folder))
    shards = read_object(index).get("weight_map", {})
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise UserError(f"{index}: no weight_map from names of weights to files beside it")
    paths = [folder / name for name in sorted(set(shards.values()))]
    for path in paths:
        if path.parent != folder or not path.is_file():
            raise UserError(f"{path}: no such file, but {INDEX} names it; weights must lie beside config.json")
    return paths


def _what_is_there_instead(folder: Path) -> str:
    advice = "load it with transformers and save_pretrained() it"
    for pattern, what in (
        ("pytorch_model*.bin", "pickles, which are never opened here"),
        ("*.gguf", "a GGUF file"),
        ("consolidated*.pth", "weights in Meta's own format"),
        ("tf_model*.h5", "TensorFlow weights"),
    ):
        if any(folder.glob(pattern)):
            return f"{folder}: holds {what} ({pattern}), no {SINGLE}; {advice} as safetensors"
    return f"{folder / SINGLE}: no such file; weights must be safetensors beside config.json"


def _described(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    """The list of tensors that a safetensors file begins with: 8 bytes of length, then JSON.

    Read here rather than through the library, whose reader takes 15 microseconds a tensor and knows only some formats.
    """
    size = path.stat().st_size
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8 or size < 8:
            raise UserError(f"{path}: damaged weights (the list of tensors is cut off)")
        if length > _LONGEST_HEADER:
            raise UserError(f"{path}: its list of tensors takes {length:,} bytes, at most {_LONGEST_HEADER:,}")
        try:
            header = parse_json(file.read(length))
            header.pop("__metadata__", None)
            found = {
                name: (StoredTensor(path, one["dtype"], tuple(one["shape"])), one["data_offsets"])
                for name, one in header.items()
            }
            for name, (one, (begin, end)) in found.items():
                _check(path, size - 8 - length, name, one, begin, end)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}: damaged weights ({error})") from None
    yield from ((name, one) for name, (one, _) in found.items())


def _check(path: Path, room: int, name: str, one: StoredTensor, begin: int, end: int) -> None:
    whole = all(type(n) is int and n >= 0 for n in (*one.shape, begin, end)) and isinstance(one.dtype, str)
    bits = _BITS.get(one.dtype)
    if not whole or not begin <= end <= room or (bits and math.prod(one.shape) * bits != 8 * (end - begin)):
        raise UserError(f"{path}: damaged weights (the file ends inside {name}, or it has another shape)")
