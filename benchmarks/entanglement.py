"""What sharing weights costs, sampler by sampler and dimension by dimension, on networks of about 125,000 parameters.

    python benchmarks/entanglement.py runs/entanglement             # a training that is stored is not repeated
    python benchmarks/entanglement_report.py runs/entanglement      # tables, and benchmarks/results/entanglement.json

Trains networks of one size alone (with two seeds each), one supernet for every sampler, and supernets in which a single
dimension varies; then the same band and the same networks for longer. Whatever its sampler, a supernet trains equally
many networks. One thread; times are CPU seconds of the process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from llmnas.config import Config
from llmnas.cost import Budget, BudgetSampler
from llmnas.data import Sequences
from llmnas.evaluate.quality import window_losses
from llmnas.files import read_json, write_json
from llmnas.pipeline.context import Context
from llmnas.pipeline.prepare import prepare
from llmnas.rng import generator, torch_seed
from llmnas.runs import RunFolder
from llmnas.space import Architecture, LayerSpec, SearchSpace, even_subset
from llmnas.supernet import Transformer, load_weights, save_weights, stand_alone_shape
from llmnas.tracking import Tracker
from llmnas.train.engine import start_processes
from llmnas.train.sampling import OneNetwork, Sampler, SupernetSampler
from llmnas.train.settings import SamplerSettings, TrainSettings
from llmnas.train.trainer import train

CENTRE, BAND = 125_000, 0.1
NETWORKS, SEEDS, WINDOWS = 16, 2, 256
ALONE, ALONE_LONGER, SUPERNET, SUPERNET_LONGER = 500, 1500, 1200, 6000  # networks trained: one a step, but a sandwich's
VALUES: dict[str, Any] = {
    "name": "entanglement",
    "space": {
        "base": {"vocab_size": 512, "max_seq": 64},
        "layers": 6,
        "hidden_size": [48, 64, 96, 128],
        "depth": {"choices": [2, 3, 4, 6], "policy": "any"},
        "kv_heads": [1, 2],
        "queries_per_group": [1, 2],
        "head_dim": 16,
        "ffn_size": {"choices": [16, 32, 64, 128], "per_layer": True},
    },
    "train": {"steps": 1, "batch_size": 8, "seq_len": 64, "lr": 0.005, "threads": 1, "log_every": 500},
    "tracking": {"wandb": "off"},
}
ALONE_LR = 0.008
BUDGETS = {
    "whole": Budget(),
    "band": Budget(min_params=int((1 - BAND) * CENTRE), max_params=int((1 + BAND) * CENTRE)),
    "wider": Budget(min_params=int(0.6 * CENTRE), max_params=int((1 + BAND) * CENTRE)),  # of what dropout may leave
}
# name -> (which of BUDGETS, train.sampler)
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "uniform, whole space": ("whole", {"anchor_every": 0}),
    "flat in parameters, whole space": ("whole", {"anchor_every": 0, "distribution": "uniform"}),
    "fair, whole space": ("whole", {"kind": "fair", "random": 1}),
    "uniform, band": ("band", {"anchor_every": 0}),
    "sandwich, band": ("band", {"kind": "sandwich", "random": 1, "largest": "budget"}),
    "attentive best, band": (
        "band", {"anchor_every": 0, "distribution": "uniform", "attentive": {"pick": "best"}}
    ),
    "attentive worst, band": (
        "band", {"anchor_every": 0, "distribution": "uniform", "attentive": {"pick": "worst"}}
    ),
    "uniform, wider band": ("wider", {"anchor_every": 0}),
    "path dropout, wider band": ("wider", {"anchor_every": 0, "path_dropout": {"rate": 0.5, "ramp": 600}}),
}  # fmt: skip
DIMENSIONS = ("nothing", "hidden_size", "depth", "heads", "ffn_size")


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        kind: `alone`, `sampler` or `dimension`.
        name: the network's number, or one of SAMPLERS or DIMENSIONS.
        steps: networks trained.
    """

    kind: str
    name: str
    seed: int
    steps: int

    @property
    def label(self) -> str:
        """What its files are called."""
        return f"{self.kind}-{self.name}-seed{self.seed}-{self.steps}".replace(", ", "-").replace(" ", "-")


def jobs() -> Iterator[Job]:
    """Everything to train, the most needed first."""
    yield from (Job("alone", str(i), 0, ALONE) for i in range(NETWORKS))
    yield from (Job("sampler", name, 0, SUPERNET) for name in SAMPLERS)
    yield from (Job("alone", str(i), seed, ALONE) for seed in range(1, SEEDS) for i in range(NETWORKS))
    yield from (Job("dimension", name, 0, SUPERNET) for name in DIMENSIONS)
    yield Job("sampler", "uniform, band", 0, SUPERNET_LONGER)
    for seed in range(1, SEEDS):
        yield from (Job("sampler", name, seed, SUPERNET) for name in SAMPLERS)
        yield from (Job("dimension", name, seed, SUPERNET) for name in DIMENSIONS)
        yield Job("sampler", "uniform, band", seed, SUPERNET_LONGER)
    yield from (Job("alone", str(i), 0, ALONE_LONGER) for i in range(NETWORKS))


class Study:
    """The text, the space and the networks of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = Config.model_validate(VALUES)
        self.space, self.settings = config.space, config.train
        run = RunFolder(folder / "text")
        context = Context(config, run, Tracker(run.path, "off", "entanglement", {}))
        prepare(context)
        self.tokens = context.tokens("train").tokens
        self.windows, _ = context.windows(WINDOWS)
        drawn = BudgetSampler(self.space, BUDGETS["band"]).sample_many(generator(0, "networks"), 4 * NETWORKS)
        # without regard to their loss
        self.networks = list(dict.fromkeys(drawn))[:NETWORKS]

    @property
    def middle(self) -> Architecture:
        """The network that every supernet of one dimension holds."""
        spec = LayerSpec(kv_heads=1, queries_per_group=2, head_dim=16, ffn_size=64)
        return self.space.build(96, dict.fromkeys(even_subset(self.space.layers, 3), spec))

    def one_dimension(self, name: str) -> SearchSpace:
        """The space in which only that dimension varies; everything else is the middle network's."""
        spec = self.middle.kept[0][1]
        closed: dict[str, dict[str, Any]] = {
            "hidden_size": {"hidden_size": [self.middle.hidden_size]},
            "depth": {"depth": {"choices": [self.middle.depth], "policy": "even"}},
            "heads": {"kv_heads": [spec.kv_heads], "queries_per_group": [spec.queries_per_group]},
            "ffn_size": {"ffn_size": [spec.ffn_size]},
        }
        values = dict(VALUES["space"])
        for dimension, fixed in closed.items():
            if dimension != name:
                values |= fixed
        return SearchSpace.from_dict(values)

    def weights(self, job: Job) -> Path:
        """Where a supernet's weights are."""
        return self.folder / f"{job.label}.safetensors"

    def supernet(self, job: Job) -> Transformer:
        """A trained supernet of a sampler."""
        return load_weights(Transformer(self.space), self.weights(job)).eval()

    def stored(self, job: Job) -> dict[str, Any] | None:
        """What was found by a training of the same settings."""
        path = self.folder / f"{job.label}.json"
        found: dict[str, Any] = read_json(path) if path.exists() else {}
        return found if found.get("settings") == self._settings(job) else None

    def do(self, job: Job) -> dict[str, Any]:
        """Train what is not stored."""
        found = self.stored(job)
        if found is None:
            start = time.process_time()
            losses = self._alone(job) if job.kind == "alone" else self._supernet(job)
            found = {"settings": self._settings(job), **losses, "cpu_seconds": time.process_time() - start}
            write_json(self.folder / f"{job.label}.json", found)
            print(f"{job.label}: {found['cpu_seconds']:.1f} CPU s", flush=True)
        return found

    def _settings(self, job: Job) -> dict[str, Any]:
        """Everything that the result depends on."""
        budget, sampler = SAMPLERS.get(job.name, ("whole", {"anchor_every": 0}))
        found = {**asdict(job), "values": VALUES, "windows": WINDOWS}
        if job.kind == "alone":
            return {**found, "lr": ALONE_LR, "architecture": self.networks[int(job.name)].to_dict()}
        return {
            **found,
            "budget": {key: list(limits) for key, limits in BUDGETS[budget].limits().items()},
            "sampler": sampler,
        }

    def _train(self, model: Transformer, sampler: Sampler, settings: TrainSettings, seed: int) -> None:
        train(model, sampler, Sequences(self.tokens, settings.seq_len, 1 + seed), settings, start_processes())

    def _alone(self, job: Job) -> dict[str, Any]:
        arch = self.networks[int(job.name)]
        widest = max(spec.head_dim for _, spec in self.space.envelope.kept)
        model = Transformer(stand_alone_shape(self.space.base, widest, arch), torch_seed(job.seed, "init"))
        settings = self.settings.model_copy(update={"steps": job.steps, "lr": ALONE_LR})
        self._train(model, OneNetwork(model.envelope), settings, job.seed)
        return {"losses": [float(window_losses(model.eval(), None, self.windows).mean())]}

    def _supernet(self, job: Job) -> dict[str, Any]:
        """Losses of the networks, the middle one last; of a single dimension only of that."""
        budget, options = SAMPLERS.get(job.name, ("whole", {"anchor_every": 0}))
        space = self.space if job.kind == "sampler" else self.one_dimension(job.name)
        chosen = SamplerSettings.model_validate(options)
        steps = job.steps // chosen.networks_per_step()
        settings = self.settings.model_copy(update={"sampler": chosen, "steps": steps})
        model = Transformer(space, torch_seed(job.seed, "init"))
        self._train(model, SupernetSampler(space, BUDGETS[budget], chosen, job.seed), settings, job.seed)
        save_weights(model.eval(), self.weights(job))
        archs = [*(self.networks if job.kind == "sampler" else []), self.middle]
        return {"losses": [float(window_losses(model, arch, self.windows).mean()) for arch in archs]}


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where trainings are stored")
    parser.add_argument("--only", nargs="*", default=[""], metavar="TEXT", help="trainings with this in their label")
    parser.add_argument("--list", action="store_true", help="what would be trained, and what is stored")
    args = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(args.folder)
    for job in (job for job in jobs() if any(text in job.label for text in args.only)):
        if args.list:
            print(f"{job.label}: {'missing' if study.stored(job) is None else 'stored'}")
        else:
            study.do(job)


if __name__ == "__main__":
    main()
