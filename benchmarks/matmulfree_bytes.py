"""Does a network with dense and ternary layers beat all-dense and all-ternary ones of the same weight bytes?

Twelve tiny networks of one hidden size and nearly equal bytes as deployed (2 a dense value, 2 bits a ternary weight),
four of each family, attention and MLGRU among them. All are trained alone for a third of the tokens; the best of a
family takes three learning rates at full length, the same three for all; at its best rate it is then trained on seeds
that have decided nothing. Full length is 20 tokens for every parameter in the layers of the largest. Ternary weights
take the field's recipe: two phases, half the rate and no weight decay in the second.

    python benchmarks/matmulfree_bytes.py --folder runs/matmulfree_bytes

Every run stores what it finds in the folder and is skipped when started again.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleave import machine
from matmulfree_study import DEPLOYED, SEQ, decode_ms, once, settings_of, tokens
from scipy.stats import t as student
from tables import line

from llmnas.cost import count_params, memory
from llmnas.data import Sequences
from llmnas.evaluate.quality import window_losses
from llmnas.files import write_json
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec
from llmnas.supernet import Transformer
from llmnas.train.engine import start_processes
from llmnas.train.sampling import OneNetwork
from llmnas.train.trainer import train

RESULTS = Path(__file__).parent / "results" / "matmulfree_bytes.json"
BASE = BaseModel(vocab_size=320, tied=True, max_seq=SEQ)
HIDDEN, MAX_BYTES, BATCH = 64, 74_200, 16
TOKENS_PER_PARAM, SCREEN = 20, 3
RATES, SCREEN_RATE, SEEDS = (8e-3, 16e-3, 4e-3), 8e-3, (1, 2, 3)
Cells = dict[str, Any]

# packed weights need inputs in whole groups of 64; dense layers take the bytes that are left
TERNARY = LayerSpec(2, 1, 32, 128, weights="ternary")
NARROW, WIDE = replace(TERNARY, ffn_size=64), replace(TERNARY, ffn_size=256)
DENSE, SMALL = LayerSpec(2, 1, 16, 1), LayerSpec(1, 1, 16, 1)


def mlgru(spec: LayerSpec) -> LayerSpec:
    """The layer with the other mixer."""
    return replace(spec, mixer="mlgru")


FAMILIES: dict[str, dict[str, tuple[LayerSpec, ...]]] = {
    "dense": {
        "1 attention": (DENSE,),
        "1 mlgru": (mlgru(DENSE),),
        "2 attention": (SMALL, SMALL),
        "2 mlgru": (mlgru(SMALL), mlgru(SMALL)),
    },
    "ternary": {
        "3 attention": (TERNARY,) * 3,
        "3 mlgru": (mlgru(TERNARY),) * 3,
        "attention, 2 mlgru": (TERNARY, mlgru(TERNARY), mlgru(TERNARY)),
        "2 attention, wide": (WIDE, replace(WIDE, ffn_size=192)),
    },
    "mixed": {
        "dense first, 2 ternary": (SMALL, NARROW, NARROW),
        "2 ternary, dense last": (NARROW, NARROW, SMALL),
        "dense attention first, 2 ternary mlgru": (SMALL, mlgru(NARROW), mlgru(NARROW)),
        "2 ternary mlgru, dense attention last": (mlgru(NARROW), mlgru(NARROW), SMALL),
    },
}


def weight_bytes(arch: Architecture) -> int:
    """Bytes of the weights as they are deployed."""
    return memory(arch, BASE, DEPLOYED).weights


def filled(layers: Sequence[LayerSpec]) -> Architecture:
    """The network whose dense feed-forwards are as wide as the limit allows, the first ones wider by one at most."""
    arch, dense = Architecture(HIDDEN, tuple(layers)), [i for i, spec in enumerate(layers) if spec.weights == "dense"]
    grown = True
    while dense and grown:
        grown = False
        for i in dense:
            kept = list(arch.layers)
            kept[i] = replace(layers[i], ffn_size=_spec(arch, i).ffn_size + 1)
            larger = Architecture(HIDDEN, tuple(kept))
            if weight_bytes(larger) <= MAX_BYTES:
                arch, grown = larger, True
    return arch


def _spec(arch: Architecture, layer: int) -> LayerSpec:
    """A kept layer."""
    found = arch.layers[layer]
    if found is None:
        raise ValueError(f"layer {layer} is a skip")
    return found


def candidates() -> list[Cells]:
    """All of them, with what they weigh and how fast they decode."""
    found = []
    for family, members in FAMILIES.items():
        for name, layers in members.items():
            arch = filled(layers)
            counted = count_params(arch, BASE)
            found.append({
                "family": family, "name": name, "arch": arch.to_dict(), "weight_bytes": weight_bytes(arch),
                "layer_params": counted.total - counted.embedding, "params": counted.total,
            })  # fmt: skip
    return found


def steps_of(cells: Sequence[Cells]) -> int:
    """Optimizer steps of a full run."""
    return -(-TOKENS_PER_PARAM * max(cell["layer_params"] for cell in cells) // (BATCH * SEQ))


class Runs:
    """Trainings of stand-alone networks, each stored under its name in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.text, held_out = tokens(BASE.vocab_size)
        self.windows = Sequences(held_out, SEQ, 0).fixed(400)

    def loss(self, cell: Cells, lr: float, seed: int, steps: int) -> float:
        """Validation loss, nats a token; seeds decide initial weights and the order of the text, so they are paired."""
        name = f"{cell['family']}-{cell['name'].replace(' ', '_').replace(',', '')}-{lr:g}-{seed}-{steps}"
        arch = Architecture.from_dict(cell["arch"])

        def make() -> float:
            model = Transformer(FixedShape(BASE, arch), seed)
            settings = settings_of(lr, steps, BATCH, low_bit=cell["family"] != "dense")
            train(model, OneNetwork(model.envelope), Sequences(self.text, SEQ, 1 + seed), settings, start_processes())
            return float(window_losses(model, None, self.windows).mean())

        stage = once(self.folder, name, make)
        print(name, stage, flush=True)
        return float(stage["found"])


def run(folder: Path, seeds: Sequence[int]) -> Cells:
    """All stages."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    cells, runs = candidates(), Runs(folder)
    steps = steps_of(cells)
    for cell in cells:
        cell["screen_loss"] = runs.loss(cell, SCREEN_RATE, 0, -(-steps // SCREEN))
    best = {f: min((c for c in cells if c["family"] == f), key=lambda c: c["screen_loss"]) for f in FAMILIES}
    grid: dict[str, dict[float, float]] = {family: {} for family in FAMILIES}
    for lr in RATES:  # the families in turn, so that what is there after an hour compares them
        for family in FAMILIES:
            grid[family][lr] = runs.loss(best[family], lr, 0, steps)
    families: Cells = {}
    for family in FAMILIES:
        lr = min(grid[family], key=lambda rate: grid[family][rate])
        losses = {f"{rate:g}": loss for rate, loss in grid[family].items()}
        families[family] = {"name": best[family]["name"], "grid": losses, "lr": lr, "losses": []}
    for seed in seeds:
        for family, found in families.items():
            found["losses"].append(runs.loss(best[family], found["lr"], seed, steps))
    speed = once(folder, "latency", lambda: {c["family"] + c["name"]: _decode(c) for c in cells})["found"]
    for cell in cells:
        cell["decode_ms"] = round(speed[cell["family"] + cell["name"]], 4)
    return {
        "device": machine(), "max_bytes": MAX_BYTES, "tokens": steps * BATCH * SEQ, "training_tokens": len(runs.text),
        "seeds": list(seeds), "candidates": cells, "families": families, "differences": differences(families),
    }  # fmt: skip


def _decode(cell: Cells) -> float:
    return decode_ms(Transformer(FixedShape(BASE, Architecture.from_dict(cell["arch"]))).eval())


def differences(families: Cells) -> dict[str, dict[str, float]]:
    """Of two families, paired by seed, in nats: mean and half of the 95 % interval (Student's t)."""
    found = {}
    for one, other in (("mixed", "dense"), ("mixed", "ternary"), ("ternary", "dense")):
        pairs = np.subtract(families[one]["losses"], families[other]["losses"]).tolist()
        error = statistics.stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else float("nan")
        half = float(student.ppf(0.975, len(pairs) - 1)) * error if len(pairs) > 1 else float("nan")
        found[f"{one} - {other}"] = {"mean": statistics.mean(pairs), "half_interval": half}
    return found


def main() -> None:
    """Run what is missing and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--json", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found = run(arguments.folder, arguments.seeds)
    write_json(arguments.json, found)
    for cell in found["candidates"]:
        print(line({name: value for name, value in cell.items() if name != "arch"}))
    for family, cells in found["families"].items():
        print(f"{family:8} {line(cells)}")
    print(found["differences"])


if __name__ == "__main__":
    main()
