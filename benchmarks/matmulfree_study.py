"""Dense, ternary and MLGRU layers in one space: fronts of a supernet's loss against weight bytes and decode latency.

One supernet holds every kind of layer. The same search runs three times: dense layers only, ternary layers only, and
both. Weight bytes are those of deployment: 2 a dense value, 2 bits a ternary weight. The latency is that of one decoded
token with ternary weights packed, on one thread of this CPU. `--alone` trains the supernet's choice of each family
under one limit on bytes by itself, as a check of what the fronts say. What networks of equal bytes reach when each is
trained alone is another script's question (`matmulfree_bytes.py`).

    python benchmarks/matmulfree_study.py --folder runs/matmulfree [--alone]

Every stage stores what it finds in the folder and is skipped when started again.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decode_ternary import TOKENS, decoder
from interleave import CLOCKS, machine
from tables import line

from llmnas.cost import Workload, count_params, memory
from llmnas.data import EOS_ID, SIDES, Sequences, encode_texts, read_corpus, split_documents, train_tokenizer
from llmnas.evaluate.quality import window_losses
from llmnas.files import read_json, write_json
from llmnas.pareto import front
from llmnas.search import search
from llmnas.space import Architecture, SearchSpace
from llmnas.supernet import Transformer, load_weights, pack, packable, save_weights, stand_alone_shape
from llmnas.train.engine import start_processes
from llmnas.train.sampling import OneNetwork, SupernetSampler
from llmnas.train.settings import TrainSettings
from llmnas.train.trainer import train

RESULTS = Path(__file__).parent / "results" / "matmulfree_study.json"
ALONE = RESULTS.with_name("matmulfree_alone.json")
SEQ, BATCH, WINDOWS = 128, 8, 48
RATE = 8e-3
SPACE: dict[str, Any] = {
    "base": {"vocab_size": 512, "tied": True, "max_seq": SEQ},
    "layers": 4,
    "hidden_size": [64, 128],
    "depth": [2, 3, 4],
    "kv_heads": {"choices": [2, 4], "per_layer": True},
    "queries_per_group": 1,
    "head_dim": 32,
    "ffn_size": {"choices": [64, 128, 192], "per_layer": True},
    "weights": {"choices": ["ternary", "dense"], "per_layer": True},
    "mixer": {"choices": ["mlgru", "attention"], "per_layer": True},
}
FAMILIES: dict[str, list[str]] = {"dense": ["dense"], "ternary": ["ternary"], "mixed": ["ternary", "dense"]}
MAX_BYTES = 250_000
# low-bit latent weights take a higher rate; each family has two to choose from (seed 0 decides)
RATES: dict[str, tuple[float, float]] = {"dense": (4e-3, 8e-3), "ternary": (8e-3, 16e-3), "mixed": (6e-3, 12e-3)}
STEPS_ALONE, WINDOWS_ALONE = 500, 200
DEPLOYED = Workload(batch=1, bytes_per_value=2)
Cells = dict[str, Any]


def space_of(family: str) -> SearchSpace:
    """The part of the space whose layers a family may have."""
    return SearchSpace.from_dict({**SPACE, "weights": {"choices": FAMILIES[family], "per_layer": True}})


def weight_bytes(arch: Architecture, space: SearchSpace) -> int:
    """Bytes of the weights as they are deployed."""
    return memory(arch, space.base, DEPLOYED).weights


def belongs(arch: Architecture, family: str) -> bool:
    """Whether a network is of this family; a mixed one has both kinds of layers."""
    return {spec.weights for _, spec in arch.kept} == set(FAMILIES[family])


def tokens(vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(training, validation) tokens of the speeches, split by document."""
    documents = read_corpus("sotu")
    split = split_documents(documents, 0.05, seed=0)
    texts = {side: [d.text for d in documents if split.side(d.text) == side] for side in SIDES}
    tokenizer = train_tokenizer(texts["train"], vocab_size)
    trained, held_out = (
        np.concatenate([[*row, EOS_ID] for row in encode_texts(tokenizer, texts[side])]).astype(np.uint16)
        for side in SIDES
    )
    return trained, held_out


def settings_of(lr: float, steps: int, batch: int, *, low_bit: bool) -> TrainSettings:
    """The recipe: two phases where there are ternary weights."""
    recipe = {"second_phase": {}} if low_bit else {}
    values = {"steps": steps, "batch_size": batch, "seq_len": SEQ, "lr": lr, "threads": 1, "log_every": steps}
    return TrainSettings.model_validate({**values, "eval_every": steps, "save_every": steps, **recipe})


def once(folder: Path, name: str, make: Callable[[], Any]) -> Any:
    """The stored result of a stage, or that of running it now, with its CPU seconds."""
    path = folder / f"{name}.json"
    if not path.exists():
        begin = time.process_time()
        found = make()
        write_json(path, {"found": found, "cpu_seconds": time.process_time() - begin})
    return read_json(path)


def make_supernet(folder: Path, text: np.ndarray, steps: int) -> dict[str, Any]:
    """Train all networks at once, and keep the weights."""
    space = space_of("mixed")
    settings = settings_of(RATE, steps, BATCH, low_bit=True)
    sampler = SupernetSampler(space, None, settings.sampler, seed=0)
    model = Transformer(space, seed=0)
    outcome = train(model, sampler, Sequences(text, SEQ, 0), settings, start_processes())
    save_weights(model, folder / "supernet.safetensors")
    return {"steps": steps, "tokens": outcome.tokens, "lr": settings.lr}


def search_family(folder: Path, family: str, windows: np.ndarray, evaluations: int) -> list[dict[str, Any]]:
    """Every network that the search of one family looked at."""
    whole = space_of("mixed")
    model = load_weights(Transformer(whole), folder / "supernet.safetensors").eval()

    def evaluate(archs: Sequence[Architecture]) -> list[dict[str, float]]:
        losses = [float(window_losses(model, arch, windows).mean()) for arch in archs]
        return [
            {"val_loss": loss, "weight_bytes": float(weight_bytes(arch, whole))}
            for arch, loss in zip(archs, losses, strict=True)
        ]

    goals = {"val_loss": "min", "weight_bytes": "min"}
    archive = search(space_of(family), evaluate, objectives=goals, evaluations=evaluations, seed=0)  # type: ignore[arg-type]
    best = {evaluation.arch.id for evaluation in front(archive.evaluations, goals)}  # type: ignore[arg-type]
    return [
        {"arch": e.arch.to_dict(), "id": e.arch.id, "front": e.arch.id in best, **e.metrics}
        for e in archive.evaluations
    ]


def decode_ms(model: Transformer, repeats: int = 3) -> float:
    """Milliseconds of one decoded token with packed weights: CPU time of one thread, median of `repeats`."""
    decode = decoder(pack(model) if packable(model) else model)
    now, found = CLOCKS["cpu"], []
    for _ in range(repeats + 1):  # the first warms up
        begin = now()
        decode()
        found.append(1e3 * (now() - begin) / (TOKENS - 1))
    return statistics.median(found[1:])


def latencies(looked: Sequence[Cells]) -> dict[str, float]:
    """Milliseconds a token of every architecture, by id."""
    base, found = space_of("mixed").base, {}
    for row in looked:
        if row["id"] not in found:
            arch = Architecture.from_dict(row["arch"])
            found[row["id"]] = decode_ms(Transformer(stand_alone_shape(base, 32, arch)).eval())
    return found


def fronts(looked: Sequence[Cells], cost: str) -> dict[str, list[Cells]]:
    """By family, networks that no other of the family beats in loss and `cost`, cheapest first."""
    found = {}
    for family in FAMILIES:
        own = [row for row in looked if belongs(Architecture.from_dict(row["arch"]), family)]
        own.sort(key=lambda row: (row[cost], row["val_loss"]))
        best, kept = float("inf"), []
        for row in own:
            if row["val_loss"] < best:
                best = row["val_loss"]
                kept.append({name: row[name] for name in ("id", "val_loss", "weight_bytes", "decode_ms")})
        found[family] = kept
    return found


def run(folder: Path, steps: int, evaluations: int) -> Cells:
    """All stages."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    text, held_out = tokens(SPACE["base"]["vocab_size"])
    windows = Sequences(held_out, SEQ, 0).fixed(WINDOWS)
    stages = {"supernet": once(folder, "supernet", lambda: make_supernet(folder, text, steps))}
    looked: list[Cells] = []
    for family in FAMILIES:
        stage = once(folder, f"search-{family}", lambda f=family: search_family(folder, f, windows, evaluations))
        looked += stage["found"]
        stages[f"search-{family}"] = {"cpu_seconds": stage["cpu_seconds"]}
    ms = once(folder, "latency", lambda: latencies(looked))["found"]
    looked = [{**row, "decode_ms": round(ms[row["id"]], 4)} for row in looked]
    return {
        "device": machine(), "stages": stages, "looked_at": looked,
        "fronts": {cost: fronts(looked, cost) for cost in ("weight_bytes", "decode_ms")},
    }  # fmt: skip


def alone(folder: Path, looked: Sequence[Cells]) -> Cells:
    """By family, the network of the lowest loss within the limit, trained by itself; seeds are paired."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    text, held_out = tokens(SPACE["base"]["vocab_size"])
    windows, base = Sequences(held_out, SEQ, 0).fixed(WINDOWS_ALONE), space_of("mixed").base

    def cell(arch: Architecture, family: str, lr: float, seed: int) -> Cells:
        def make() -> float:
            model = Transformer(stand_alone_shape(base, 32, arch), seed)
            settings = settings_of(lr, STEPS_ALONE, BATCH, low_bit=family != "dense")
            train(model, OneNetwork(model.envelope), Sequences(text, SEQ, 1 + seed), settings, start_processes())
            return float(window_losses(model, None, windows).mean())

        stage = once(folder, f"alone-{family}-{lr:g}-{seed}", make)
        return {"lr": lr, "seed": seed, "val_loss": stage["found"], "cpu_seconds": stage["cpu_seconds"]}

    candidates: Cells = {}
    for family in FAMILIES:
        own = [row for row in looked if belongs(Architecture.from_dict(row["arch"]), family)]
        able = [row for row in own if row["weight_bytes"] <= MAX_BYTES]
        arch = Architecture.from_dict(min(able, key=lambda row: row["val_loss"])["arch"])
        grid = [cell(arch, family, lr, 0) for lr in RATES[family]]
        best = min(grid, key=lambda found: found["val_loss"])
        candidates[family] = {
            "arch": arch.to_dict(), "weight_bytes": weight_bytes(arch, space_of("mixed")),
            "params": count_params(arch, base).total, "grid": grid,
            "runs": [best, *(cell(arch, family, best["lr"], seed) for seed in (1, 2))],
        }  # fmt: skip
        print(family, [round(run["val_loss"], 3) for run in candidates[family]["runs"]], flush=True)
    tokens_alone = STEPS_ALONE * BATCH * SEQ
    return {"device": machine(), "max_bytes": MAX_BYTES, "tokens_alone": tokens_alone, "candidates": candidates}


def main() -> None:
    """Run what is missing and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000, help="of the supernet")
    parser.add_argument("--evaluations", type=int, default=60, help="of each of the three searches")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--alone", action="store_true", help="train the choices of --json alone instead")
    arguments = parser.parse_args()
    if arguments.alone:
        write_json(ALONE, alone(arguments.folder, read_json(arguments.json)["looked_at"]))
        return
    found = run(arguments.folder, arguments.steps, arguments.evaluations)
    write_json(arguments.json, found)
    for cost, families in found["fronts"].items():
        for family, rows in families.items():
            for row in rows:
                print(f"{cost:12} {family:8} {line(row)}")


if __name__ == "__main__":
    main()
