"""What becomes of shared weights under four optimizers: AdamW and Muon, on all of a weight or on what a step used.

    llmnas prepare CONFIG --run-dir runs/wide         # the space and the text of the study
    python benchmarks/optimiser_study.py runs/wide --label wide --steps 600
    python benchmarks/optimiser_study.py runs/wide --label wide_time --seconds 240

Every variant trains one supernet for every learning rate and seed, for equal steps or for equal CPU time of the process
(the schedule then follows the clock), one network a step or several; then 12 random networks of the space, the
smallest and the largest are measured on the validation windows. `--alone` trains the 12 alone too, for the gap and the
agreement of the rankings. A finished training is stored at once and not repeated: start the script again to go on, with
more seeds or rates for more. The table has the best rate of every variant.
"""

from __future__ import annotations

import argparse
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import kendalltau

from llmnas import Architecture, count_params
from llmnas.config import load_config
from llmnas.data import Sequences
from llmnas.evaluate.quality import window_losses
from llmnas.files import read_json, write_json
from llmnas.pipeline.context import Context
from llmnas.rng import generator, torch_seed
from llmnas.runs import RunFolder
from llmnas.space import FixedShape, SearchSpace
from llmnas.supernet import Transformer
from llmnas.tracking import Tracker
from llmnas.train.engine import Engine, start_processes
from llmnas.train.sampling import OneNetwork, Sampler, SupernetSampler
from llmnas.train.schedule import first_sequence, learning_rate
from llmnas.train.settings import TrainSettings

RESULT = Path(__file__).parent / "results" / "optimiser_study.json"
NETWORKS = 12
MEASURED = ("mean", "smallest", "largest", "steps", "seconds")
TICKS = 1_000_000  # the schedule in steps, read at a fraction of the time
VARIANTS: dict[str, dict[str, Any]] = {
    "adamw all": {"optimizer": "adamw", "update": "all"},
    "adamw active": {"optimizer": "adamw", "update": "active"},
    "muon slice": {"optimizer": "muon", "update": "active", "muon": {"scope": "slice"}},
    "muon whole": {"optimizer": "muon", "update": "active", "muon": {"scope": "whole"}},
}


class Length(NamedTuple):
    """Of a training: optimizer steps, or CPU seconds of this process where there are any."""

    steps: int
    seconds: float | None

    def words(self) -> str:
        """For a key of the JSON."""
        return f"{self.seconds:g} s" if self.seconds else f"{self.steps} steps"


def train(
    model: Transformer, sampler: Sampler, sequences: Sequences, settings: TrainSettings, length: Length
) -> dict[str, float]:
    """Train in place; steps made and CPU seconds taken."""
    engine = Engine(model, settings, start_processes())
    step, begun, done = 0, time.process_time(), 0.0
    while done < 1:
        networks = sampler.networks(step)
        for i, arch in enumerate(networks):
            first = first_sequence(step, i, settings)
            batch = torch.from_numpy(sequences.batch(first, settings.batch_size))
            out = engine.forward(batch[:, :-1], arch, targets=batch[:, 1:])
            engine.backward(out.loss / len(networks))
        rate = learning_rate(min(settings.steps - 1, int(done * settings.steps)), settings)
        engine.step(rate, settings.weight_decay, networks)
        step += 1
        done = (time.process_time() - begun) / length.seconds if length.seconds else step / length.steps
    seconds = time.process_time() - begun
    engine.release()
    return {"steps": step, "seconds": round(seconds, 2)}


def losses(model: Transformer, archs: list[Architecture], windows: np.ndarray) -> list[float]:
    """Validation loss of each network."""
    return [float(window_losses(model, arch, windows).mean()) for arch in archs]


class Study:
    """The trainings of one label in one JSON."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        run = RunFolder(args.run)
        self.context = Context(load_config(run.config, []), run, Tracker(args.run, "off", "study", {}))
        self.space: SearchSpace = self.context.config.space
        self.length = Length(args.steps, args.seconds)
        rng = generator(0, "study")
        self.archs: list[Architecture] = []
        while len(self.archs) < NETWORKS:
            arch = self.space.sample(rng)
            self.archs += [arch] if arch not in self.archs else []
        self.windows, _ = self.context.windows(args.windows)
        self.found: dict[str, Any] = read_json(args.json) if args.json.exists() else {}
        self.own: dict[str, Any] = self.found.setdefault(args.label, {})
        self.own |= {
            "space": self.space.model_dump(mode="json", exclude_none=True),
            "length": self.length.words(),
            "networks_a_step": args.networks,
            "batch": self.context.config.train.batch_size,
            "sequence": self.context.config.train.seq_len,
            "versions": {name: version(name) for name in ("torch", "deepspeed")}
            | {"python": platform.python_version()},
            "params": [count_params(arch, self.space.base).total for arch in self.archs],
        }

    def settings(self, variant: str, rate: float) -> TrainSettings:
        """Of one training."""
        config = self.context.config.train
        one = {"kind": "single", "anchor_every": 0}
        return TrainSettings.model_validate(
            {
                "steps": TICKS if self.length.seconds else self.length.steps,
                "batch_size": config.batch_size, "seq_len": config.seq_len, "lr": rate,
                "sampler": one if self.args.networks == 1 else {"kind": "uniform", "random": self.args.networks},
                **VARIANTS[variant],
            }
        )  # fmt: skip

    def supernet(self, variant: str, rate: float, seed: int) -> None:
        """Train and measure one supernet, unless that is done."""
        runs = self.own.setdefault("supernets", {})
        key = f"{variant} {rate:g} {seed}"
        if key in runs:
            return
        settings = self.settings(variant, rate)
        model = Transformer(self.space, torch_seed(seed, "init"))
        sampler = SupernetSampler(self.space, None, settings.sampler, seed)
        made = train(model, sampler, self.context.sequences(settings.seq_len, seed), settings, self.length)
        ends = [self.space.smallest(), self.space.largest()]
        *each, smallest, largest = losses(model, [*self.archs, *ends], self.windows)
        runs[key] = {**made, "mean": float(np.mean(each)), "smallest": smallest, "largest": largest, "losses": each}
        self._store(key, runs[key]["mean"])

    def alone(self, variant: str, rate: float, seed: int) -> None:
        """Train each of the networks alone at one rate, unless that is done."""
        runs = self.own.setdefault("alone", {})
        for i, arch in enumerate(self.archs):
            key = f"{variant.split()[0]} {rate:g} {seed} {i}"
            if key in runs:
                continue
            settings = self.settings(variant, rate).model_copy(update={"update": "all"})
            shape = FixedShape(self.space.base, arch.compact())
            model = Transformer(shape, torch_seed(seed, "init"))
            sequences = self.context.sequences(settings.seq_len, seed)
            made = train(model, OneNetwork(shape.envelope), sequences, settings, self.length)
            runs[key] = {**made, "loss": losses(model, [shape.envelope], self.windows)[0]}
            self._store(key, runs[key]["loss"])

    def _store(self, key: str, loss: float) -> None:
        # another label may have been stored meanwhile
        found = read_json(self.args.json) if self.args.json.exists() else {}
        write_json(self.args.json, {**found, self.args.label: self.own})
        print(f"{self.args.label}: {key}: {loss:.4f}", flush=True)


def truth(own: dict[str, Any]) -> np.ndarray | None:
    """[networks] loss alone with AdamW, the best rate of each, mean over seeds; None where nothing is trained alone."""
    best: dict[tuple[int, int], float] = {}
    for key, run in own.get("alone", {}).items():
        optimizer, _, seed, network = key.rsplit(" ", 3)
        if optimizer == "adamw":
            place = int(network), int(seed)
            best[place] = min(best.get(place, np.inf), run["loss"])
    if len({network for network, _ in best}) < NETWORKS:
        return None
    return np.array([np.mean([v for (n, _), v in best.items() if n == network]) for network in range(NETWORKS)])


def table(own: dict[str, Any]) -> str:
    """The best rate of every variant, the mean over seeds."""
    alone = truth(own)
    lines = ["| variant | rate | mean of 12, by seed | smallest | largest | steps | CPU s | gap | tau |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for variant in VARIANTS:
        rates: dict[float, list[dict[str, Any]]] = {}
        for key, run in own.get("supernets", {}).items():
            name, rate, _ = key.rsplit(" ", 2)
            if name == variant:
                rates.setdefault(float(rate), []).append(run)
        if not rates:
            continue
        most = max(map(len, rates.values()))
        full = {rate: runs for rate, runs in rates.items() if len(runs) == most}
        rate = min(full, key=lambda rate: float(np.mean([run["mean"] for run in full[rate]])))
        runs = full[rate]
        mean = {name: float(np.mean([run[name] for run in runs])) for name in MEASURED}
        each = ", ".join(f"{run['mean']:.3f}" for run in runs)
        each_network = np.mean([run["losses"] for run in runs], axis=0)
        judged = "| - | - |"
        if alone is not None:
            judged = f"| {np.mean(each_network - alone):+.3f} | {kendalltau(each_network, alone).statistic:.2f} |"
        lines.append(
            f"| {variant} | {rate:g} | {mean['mean']:.3f} ({each}) | {mean['smallest']:.3f} | {mean['largest']:.3f} "
            f"| {mean['steps']:.0f} | {mean['seconds']:.0f} {judged}"
        )
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, store it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder that `llmnas prepare` made")
    parser.add_argument("--label", required=True, help="of these trainings in the JSON")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seconds", type=float, help="CPU seconds of a training, instead of steps")
    parser.add_argument("--networks", type=int, default=1, help="trained in a step")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.004, 0.008, 0.016, 0.002])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--windows", type=int, default=256)
    parser.add_argument("--alone", action="store_true", help="train the 12 networks alone as well")
    parser.add_argument("--table", action="store_true", help="print the table of what is stored, train nothing")
    parser.add_argument("--json", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(args)
    if not args.table:
        for seed in args.seeds:
            for rate in args.rates:
                for variant in args.variants:
                    study.supernet(variant, rate, seed)
            if args.alone:
                for rate in args.rates:
                    study.alone(args.variants[0], rate, seed)
    print(table(study.own))


if __name__ == "__main__":
    main()
