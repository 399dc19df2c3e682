"""Latency from a table: what blocks cost, measured once on a device, summed for any architecture.

latency(a) = end(h) + sum over kept layers of [mixer(h, mixer sizes) + ffn(h, feed-forward sizes) - reference(h)]

The table knows the cost of stacks of equal blocks. A block is taken apart into its two halves: `mixer` is the
cost of blocks that differ in the mixer and have the reference feed-forward, `ffn` of those that differ in
the feed-forward and have the reference mixer. `end` is what remains at depth zero: embedding, last norm, head.
Between measured sizes the table interpolates linearly in each: the arithmetic of a block is linear in
each size, so what is interpolated is only how much a size changes the speed of that arithmetic.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from llmnas.cost.memory import Workload
from llmnas.errors import UserError
from llmnas.files import Seal, read_json, write_json
from llmnas.space import DIMENSIONS, Architecture, BaseModel, LayerSpec, SearchSpace

Phase = Literal["prefill", "decode"]
Fingerprint = Mapping[str, str | int]
PHASES: tuple[Phase, ...] = get_args(Phase)

_HALVES = {
    "mixer": ("kv_heads", "queries_per_group", "head_dim", "mixer", "weights"),
    "ffn": ("ffn_size", "experts", "top_k", "shared_experts", "weights"),
}
_MANY, _FEW = 5, 3  # measured values of the sizes that every block has, and of the others
_DEEPEST = 8  # layers of a measured stack; deeper networks are extrapolated
FORMAT = 2  # 1 measured low-bit weights that were not packed


def _fields(half: str) -> tuple[str, ...]:
    return tuple(name for name in _HALVES[half] if name in DIMENSIONS)


def _spread(values: Sequence[int], points: int) -> tuple[int, ...]:
    """At most `points` of the values: both ends, the middle one, and others evenly between."""
    places = np.linspace(0, len(values) - 1, min(points, len(values))).round().astype(int)
    return tuple(sorted({values[i] for i in places}))


@dataclass(frozen=True)
class Grid:
    """Milliseconds at every combination of some sizes; `at` is multilinear between them."""

    axes: tuple[tuple[str, tuple[int, ...]], ...]
    ms: np.ndarray

    def at(self, where: Mapping[str, int]) -> float:
        """Interpolated milliseconds.

        Raises:
            UserError: a size outside of what was measured.
        """
        values = self.ms
        for name, measured in self.axes:
            x = where[name]
            if not measured[0] <= x <= measured[-1]:
                raise UserError(f"latency table: {name} = {x} is outside of {measured[0]} to {measured[-1]}")
            i = min(int(np.searchsorted(measured, x, side="right")), len(measured) - 1)
            low, high = measured[max(i - 1, 0)], measured[i]
            share = (x - low) / (high - low) if high > low else 0.0
            values = (1 - share) * values[max(i - 1, 0)] + share * values[i]
        return float(values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"axes": [[name, list(values)] for name, values in self.axes], "ms": self.ms.tolist()}

    @classmethod
    def from_dict(cls, value: Any) -> Grid:
        """Inverse of `to_dict`."""
        axes = tuple((str(name), tuple(int(v) for v in values)) for name, values in value["axes"])
        ms = np.array(value["ms"], dtype=float)
        if ms.shape != tuple(len(values) for _, values in axes) or not np.isfinite(ms).all():
            raise ValueError(f"grid of shape {ms.shape} does not fit its axes, or holds numbers that are not finite")
        return cls(axes, ms)


@dataclass(frozen=True)
class Design:
    """Which stacks of equal blocks to measure so that a table can be made of them.

    Attributes:
        hidden_sizes: measured widths.
        depths: (shallow, deep): stacks are `deep` layers; those of the reference also `shallow` ones.
        reference: the block that every other one differs from in one half.
        mixers, ffns: for every combination of kinds, the measured sizes of each half.
    """

    hidden_sizes: tuple[int, ...]
    depths: tuple[int, int]
    reference: LayerSpec
    mixers: tuple[tuple[tuple[str, ...], tuple[tuple[str, tuple[int, ...]], ...]], ...]
    ffns: tuple[tuple[tuple[str, ...], tuple[tuple[str, tuple[int, ...]], ...]], ...]

    def block(self, kinds: Mapping[str, str], sizes: Mapping[str, int]) -> LayerSpec:
        """The reference with some of its kinds and sizes changed."""
        return replace(self.reference, **kinds, **sizes)  # type: ignore[arg-type]

    def stacks(self) -> list[Architecture]:
        """Every network to measure, each once."""
        shallow, deep = self.depths
        found: dict[Architecture, None] = {}
        for h in self.hidden_sizes:
            for d in (shallow, deep):
                found[Architecture(h, (self.reference,) * d)] = None
            for half, grids in (("mixer", self.mixers), ("ffn", self.ffns)):
                for kinds, axes in grids:
                    for sizes in itertools.product(*(values for _, values in axes)):
                        named = dict(zip((name for name, _ in axes), sizes, strict=True))
                        spec = self.block(_named(half, kinds), named)
                        found[Architecture(h, (spec,) * deep)] = None
                        # the other half's starting point: the reference with this half's kinds
                        base = self.block(_named(half, kinds), {})
                        found[Architecture(h, (base,) * deep)] = None
        return list(found)


def _kind_names(half: str) -> tuple[str, ...]:
    return tuple(name for name in _fields(half) if name in {"mixer", "weights"})


def _kinds(half: str, spec: LayerSpec) -> tuple[str, ...]:
    """What a grid is for: sizes are interpolated, but nothing lies between one feed-forward and a routed mixture."""
    routed = () if half == "mixer" else ("routed" if spec.experts > 1 else "single",)
    return (*(getattr(spec, name) for name in _kind_names(half)), *routed)


def _named(half: str, kinds: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(_kind_names(half), kinds, strict=False))


def _size_names(half: str) -> tuple[str, ...]:
    return tuple(name for name in _fields(half) if name not in {"mixer", "weights"})


def design(space: SearchSpace) -> Design:
    """The stacks that cover a space."""
    unknown = set(DIMENSIONS) - set(_HALVES["mixer"]) - set(_HALVES["ffn"])
    if unknown:
        raise ValueError(f"a latency table does not know which half of a block {sorted(unknown)} belongs to")
    middle = {name: space.dimension(name).choices for name in DIMENSIONS}
    start: dict[str, Any] = {}
    for name, choices in middle.items():
        kind = name in {"mixer", "weights"}
        start[name] = choices[-1] if kind else _spread(choices, _FEW)[min(1, len(choices) - 1)]
    reference = LayerSpec(**start)
    halves: dict[str, list[Any]] = {"mixer": [], "ffn": []}
    for half, grids in halves.items():
        names, sizes = _kind_names(half), _size_names(half)
        blocks: dict[tuple[str, ...], list[LayerSpec]] = {}
        for values in itertools.product(*(middle[name] for name in (*names, *sizes))):
            spec = replace(reference, **dict(zip((*names, *sizes), values, strict=True)))
            blocks.setdefault(_kinds(half, spec), []).append(spec)
        for kinds, specs in blocks.items():
            axes = [(name, sorted({getattr(spec, name) for spec in specs})) for name in sizes]
            points = [_MANY if name == "ffn_size" else _FEW for name in sizes]
            thin = [(name, _spread(found, most)) for (name, found), most in zip(axes, points, strict=True)]
            grids.append((kinds, tuple(thin)))
    deep = max(2, min(_DEEPEST, max(space.depth.choices)))
    shallow = min(max(1, min(space.depth.choices)), deep - 1)
    widths = _spread(space.hidden_size, _MANY)
    return Design(widths, (shallow, deep), reference, tuple(halves["mixer"]), tuple(halves["ffn"]))


@dataclass(frozen=True)
class BlockTable:
    """Measured block costs of one device under one workload; `latency_ms` sums them.

    Attributes:
        fingerprint: the device, threads, dtype and library that were measured.
        base: what all architectures of the space share, as plain values.
        ends: milliseconds outside of the blocks, by hidden size.
        mixers, ffns: by kinds, milliseconds of a block; the second less the reference's.
        noise: relative difference between two halves of the measurement, mean over stacks.
        seconds: that the measurement took.
    """

    fingerprint: Fingerprint
    phase: Phase
    workload: Workload
    base: Mapping[str, Any]
    ends: Grid
    mixers: Mapping[tuple[str, ...], Grid]
    ffns: Mapping[tuple[str, ...], Grid]
    noise: float
    seconds: float

    def end_ms(self, hidden_size: int) -> float:
        """Embedding, last norm and head."""
        return self.ends.at({"hidden_size": hidden_size})

    def block_ms(self, hidden_size: int, spec: LayerSpec) -> float:
        """One block in the middle of a network."""
        total = 0.0
        for half, grids in (("mixer", self.mixers), ("ffn", self.ffns)):
            kinds = _kinds(half, spec)
            if kinds not in grids:
                raise UserError(f"latency table: no block with {' and '.join(kinds)} was measured")
            where = {"hidden_size": hidden_size, **{name: getattr(spec, name) for name in _size_names(half)}}
            total += grids[kinds].at(where)
        return total

    def latency_ms(self, arch: Architecture) -> float:
        """Milliseconds of one pass.

        Raises:
            UserError: a size or kind that the table does not cover.
        """
        blocks: dict[LayerSpec, int] = {}
        for _, spec in arch.kept:
            blocks[spec] = blocks.get(spec, 0) + 1
        inside = sum(count * self.block_ms(arch.hidden_size, spec) for spec, count in blocks.items())
        return self.end_ms(arch.hidden_size) + inside

    def save(self, path: Path, seal: Seal | None = None) -> None:
        """Write as JSON; `seal` as in `llmnas.files.hashed_open`."""
        value = {
            "format": FORMAT, "fingerprint": dict(self.fingerprint), "phase": self.phase,
            "workload": asdict(self.workload), "base": dict(self.base), "ends": self.ends.to_dict(),
            "mixers": [{"kinds": list(kinds), **grid.to_dict()} for kinds, grid in self.mixers.items()],
            "ffns": [{"kinds": list(kinds), **grid.to_dict()} for kinds, grid in self.ffns.items()],
            "noise": self.noise, "seconds": self.seconds,
        }  # fmt: skip
        write_json(path, value, seal)

    @classmethod
    def load(
        cls, path: Path, fingerprint: Fingerprint, phase: Phase, workload: Workload, base: BaseModel
    ) -> BlockTable:
        """Read a table.

        Raises:
            UserError: damaged, measured on another device, or for another workload or base model.
        """
        value = read_json(path)
        try:
            if value["format"] != FORMAT:
                raise ValueError(f"format {value['format']}, this version reads {FORMAT}")
            grids = {
                half: {tuple(map(str, entry["kinds"])): Grid.from_dict(entry) for entry in value[half]}
                for half in ("mixers", "ffns")
            }
            table = cls(
                value["fingerprint"], value["phase"], Workload(**value["workload"]), value["base"],
                Grid.from_dict(value["ends"]), grids["mixers"], grids["ffns"],
                float(value["noise"]), float(value["seconds"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: not a latency table ({error}); delete it to have it measured again") from None
        wanted = {"phase": phase, **asdict(workload), **asdict(base), **fingerprint}
        found = {"phase": table.phase, **asdict(table.workload), **table.base, **table.fingerprint}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise UserError(
                    f"{path}: measured with {name} = {found.get(name)}, here it is {wanted.get(name)}; "
                    "delete it to have it measured again"
                )
        return table


def assemble(
    plan: Design, ms: Mapping[Architecture, float], fingerprint: Fingerprint, phase: Phase, workload: Workload,
    base: BaseModel, noise: float, seconds: float,
) -> BlockTable:  # fmt: skip
    """Make the table from the measured milliseconds of every stack of the design."""
    shallow, deep = plan.depths
    ends = []
    for h in plan.hidden_sizes:
        low, high = (ms[Architecture(h, (plan.reference,) * d)] for d in plan.depths)
        ends.append(max(0.0, low - shallow * (high - low) / (deep - shallow)))
    end = dict(zip(plan.hidden_sizes, ends, strict=True))

    def block(h: int, spec: LayerSpec) -> float:
        return (ms[Architecture(h, (spec,) * deep)] - end[h]) / deep

    made: dict[str, dict[tuple[str, ...], Grid]] = {"mixer": {}, "ffn": {}}
    for half, grids in (("mixer", plan.mixers), ("ffn", plan.ffns)):
        for kinds, axes in grids:
            named = _named(half, kinds)
            every = (("hidden_size", plan.hidden_sizes), *axes)
            values = np.empty([len(sizes) for _, sizes in every])
            for place in np.ndindex(*values.shape):
                h, *sizes = (axis[i] for (_, axis), i in zip(every, place, strict=True))
                spec = plan.block(named, dict(zip((name for name, _ in axes), sizes, strict=True)))
                less = block(h, plan.block(named, {})) if half == "ffn" else 0.0
                values[place] = block(h, spec) - less
            made[half][kinds] = Grid(every, values)
    ends_grid = Grid((("hidden_size", plan.hidden_sizes),), np.array(ends))
    return BlockTable(
        fingerprint, phase, workload, asdict(base), ends_grid, made["mixer"], made["ffn"], noise, seconds
    )  # fmt: skip
