"""Healing a cut model: which teacher, which shape; equal parameters and tokens, each at its own best learning rate.

    python benchmarks/compress_healing.py MODEL_FOLDER --folder runs/healing --json benchmarks/results/NAME.json

Every run is stored in the folder when it is done; the same command goes on. A learning rate is chosen from one grid on
a seed outside of the comparison. Seeds differ in the order of the text; runs of one seed are paired.

- Teachers: one narrower network healed on the text alone, or with logits of the model as it is; then the same where
  the model itself was first trained on the text ("teacher correction", Sreenivas et al. 2024, "LLM Pruning and
  Distillation in Practice", section 2.1) and the network is cut out of that; and as long on the text alone as
  correction and healing take together.
- Own text: the same network healed on text that the model wrote, where nobody knows more than the teacher.
- Shapes: the last layers dropped, the least important ones dropped, every layer narrower, and what a search of a
  supernet found, all cut out of the same model, and the found one out of its supernet too.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compress_study import Text, read_text, started

from llmnas.cost import Budget, count_params
from llmnas.evaluate.quality import window_losses
from llmnas.evaluate.rank import paired_difference
from llmnas.files import read_json, write_json
from llmnas.pipeline.compress import space_values
from llmnas.pipeline.pruned import pruned
from llmnas.search import search
from llmnas.space import Architecture, FixedShape, SearchSpace
from llmnas.supernet import Transformer, extract, load_weights, save_weights
from llmnas.supernet.importance import importance, layer_importance, reorder
from llmnas.train.distill import Original
from llmnas.train.engine import start_processes
from llmnas.train.sampling import OneNetwork, Sampler, SupernetSampler
from llmnas.train.settings import DistillSettings, SamplerSettings, TrainSettings
from llmnas.train.trainer import train
from llmnas.train.warmstart import read_pretrained

TEXT: dict[str, Any] = {}
LOGITS: dict[str, Any] = {"source": "original", "weight": 0.5, "top_k": 64}
BLOCKS: dict[str, Any] = LOGITS | {"blocks": 0.1}
# name -> (which model the network is cut out of and taught by, what of it is learnt, correction added to the steps)
WAYS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "text": ("original", TEXT, False),
    "logits": ("original", LOGITS, False),
    "text, as long as both": ("original", TEXT, True),
    "corrected: text": ("corrected", TEXT, False),
    "corrected: logits": ("corrected", LOGITS, False),
    "corrected: logits and blocks": ("corrected", BLOCKS, False),
}


class Study:
    """The pieces, each computed once and kept in a folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.folder = args, Path(args.folder)
        self.pretrained = read_pretrained(args.model)
        self.shape = FixedShape(self.pretrained.base, self.pretrained.arch)
        self.text = read_text(args.model, self.pretrained.base.vocab_size, args.corpus, args.documents)
        self.windows = self.text.windows(args.seq, args.windows)
        self.calibration = self.text.calibration(args.seq, args.calibration)
        self.params = args.params or count_params(self.last_layers(args.layers), self.pretrained.base).total
        self.spent = 0.0

    def stored(self, name: str, compute: Callable[[], Any]) -> Any:
        """What a piece gave, from the folder where it is there."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            begun = time.process_time()
            value = compute()
            write_json(path, {"value": value, "cpu_seconds": round(time.process_time() - begun, 1)})
            print(name, value, flush=True)
        found = read_json(path)
        self.spent += found["cpu_seconds"]
        return found["value"]

    def last_layers(self, count: int) -> Architecture:
        """The model without all but its first layers: the size at which everything is compared."""
        layers = tuple(spec if i < count else None for i, spec in enumerate(self.pretrained.arch.layers))
        return Architecture(self.pretrained.arch.hidden_size, layers)

    def settings(self, lr: float, steps: int, distill: Mapping[str, Any] = TEXT, **changes: Any) -> TrainSettings:
        """Of every training here; the rest is the product's defaults."""
        values = {"steps": steps, "batch_size": self.args.batch, "seq_len": self.args.seq, "lr": lr, "threads": 1}
        return TrainSettings.model_validate(values | {"distill": distill} | changes)

    def fit(
        self, model: Transformer, settings: TrainSettings, text: Text, seed: int, teacher: Original | None = None,
        sampler: Sampler | None = None,
    ) -> None:  # fmt: skip
        """Train in place, in one process."""
        sequences = text.sequences(settings.seq_len, 1 + seed)
        train(model, sampler or OneNetwork(model.envelope), sequences, settings, start_processes(), guide=teacher)

    @cached_property
    def original(self) -> Transformer:
        """The model with its parts sorted."""
        return self._sorted(started(self.pretrained))

    @cached_property
    def corrected(self) -> Transformer:
        """The whole model after `correction` steps on the text at the best learning rate of the grid, sorted again."""
        path = self.folder / "corrected.safetensors"
        if path.exists():
            return load_weights(Transformer(self.shape, seed=None), path).eval()

        def tried(lr: float) -> tuple[float, Transformer]:
            model = copy.deepcopy(self.original).requires_grad_(True).train()
            self.fit(model, self.settings(lr, self.args.correction), self.text, self.args.seeds)
            return float(window_losses(model, None, self.windows).mean()), model

        found = {lr: tried(lr) for lr in self.args.correction_grid}
        best = min(found, key=lambda lr: found[lr][0])
        self.stored("correction", lambda: {"grid": {str(lr): loss for lr, (loss, _) in found.items()}, "lr": best})
        model = self._sorted(found[best][1].eval())
        save_weights(model, path)
        return model

    def _sorted(self, model: Transformer) -> Transformer:
        reorder(model, importance(model, [batch[:, :-1] for batch in self.calibration]))
        return model

    def healed(
        self, name: str, arch: Architecture, way: str, text: Text | None = None, windows: np.ndarray | None = None,
        source: Transformer | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Losses of the seeds at the best learning rate of the grid.

        `name`: tells apart networks that start from, or learn, something else; `source`: what the network is cut
        out of, where that is not its teacher.
        """
        whole, distill, both = WAYS[way]
        steps = self.args.steps + (self.args.correction if both else 0)

        def loss(lr: float, seed: int) -> float:
            teacher = getattr(self, whole)
            student = extract(source or teacher, arch).requires_grad_(True).train()
            guide = Original(teacher, DistillSettings(**distill), [i for i, _ in arch.kept]) if distill else None
            self.fit(student, self.settings(lr, steps, distill), text or self.text, seed, guide)
            return float(window_losses(student, None, self.windows if windows is None else windows).mean())

        def stored(lr: float, seed: int) -> float:
            # by architecture: recipes that agree are one network
            key = f"{name}{arch.id}--{way}--lr{lr:g}--seed{seed}".replace(" ", "-").replace(":", "").replace(",", "")
            return float(self.stored(key, lambda: loss(lr, seed)))

        grid = {lr: stored(lr, self.args.seeds) for lr in self.args.grid}
        best = min(grid, key=lambda lr: grid[lr])
        losses = [stored(best, seed) for seed in range(self.args.seeds)]
        return {
            "params": count_params(arch, self.pretrained.base).total, "tokens": steps * self.args.batch * self.args.seq,
            "grid": {str(lr): value for lr, value in grid.items()}, "lr": best, "losses": losses,
            "mean": float(np.mean(losses)),
        }  # fmt: skip

    def teachers(self) -> dict[str, Any]:
        """One narrower network, every way."""
        arch = pruned("width", self.shape, self.params, [])
        found = {way: self.healed("", arch, way) for way in WAYS}
        before = {name: float(window_losses(getattr(self, name), None, self.windows).mean())
                  for name in ("original", "corrected")}  # fmt: skip
        cut = {name: float(window_losses(getattr(self, name), arch, self.windows).mean()) for name in before}
        pairs = [("logits", "text"), ("corrected: logits", "corrected: text"),
                 ("corrected: logits and blocks", "corrected: text"),
                 ("corrected: logits", "text, as long as both")]  # fmt: skip
        return {"teacher": before, "cut": cut, "healed": found, "differences": differences(found, pairs)}

    def own_text(self) -> dict[str, Any]:
        """The same network on text that the model wrote."""
        length, count = self.args.seq + 1, self.args.steps * self.args.batch
        written = [written_by(self.original, chunk, length, self.args.bos, seed)
                   for seed, chunk in enumerate([count // 4] * 4 + [self.args.windows])]  # fmt: skip
        text = Text(np.concatenate(written[:4]).flatten(), written[4].flatten(), -1)
        arch = pruned("width", self.shape, self.params, [])
        found = {way: self.healed("own-text-", arch, way, text, written[4]) for way in ("text", "logits")}
        before = float(window_losses(self.original, None, written[4]).mean())
        return {"teacher": before, "healed": found, "differences": differences(found, [("logits", "text")])}

    def shapes(self, way: str) -> dict[str, Any]:
        """Every recipe and the found one, out of the model; the found one out of its supernet too."""
        scores = layer_importance(self.original, self.calibration)
        archs = {
            recipe: pruned(recipe, self.shape, self.params, scores) for recipe in ("last_layers", "depth", "width")
        }
        supernet = self.supernet()
        found = Architecture.from_dict(self.stored("found", lambda: self.search(supernet).to_dict()))
        results = {name: self.healed("", arch, way) for name, arch in archs.items()}
        results["found"] = self.healed("", found, way)
        results["found, out of the supernet"] = self.healed("supernet-", found, way, source=supernet)
        pairs = [("found", other) for other in archs] + [("found, out of the supernet", "found")]
        return {"found": found.to_dict(), "healed": results, "differences": differences(results, pairs)}

    @cached_property
    def space(self) -> SearchSpace:
        """The one that `llmnas compress` makes."""
        return SearchSpace.from_dict(space_values(self.args.model, per_layer=False))

    def supernet(self) -> Transformer:
        """The model as a supernet, trained for a short time on the text."""
        path = self.folder / "supernet.safetensors"
        model = Transformer(self.space, seed=None)
        if path.exists():
            return load_weights(model, path).eval()
        model.load_state_dict(self.original.state_dict())
        sampler = SupernetSampler(self.space, self.budget, SamplerSettings(largest="budget"), 0)
        self.fit(model, self.settings(1e-3, self.args.supernet), self.text, self.args.seeds, sampler=sampler)
        save_weights(model, path)
        return model.eval()

    @property
    def budget(self) -> Budget:
        """At most the size at which everything is compared."""
        return Budget(max_params=self.params)

    def search(self, supernet: Transformer) -> Architecture:
        """The best of an NSGA-II search on training text."""
        windows = self.text.sequences(self.args.seq, 0).fixed(32)

        def evaluate(archs: Sequence[Architecture]) -> list[dict[str, float]]:
            return [
                {"val_loss": float(window_losses(supernet, arch, windows).mean()),
                 "params": float(count_params(arch, self.space.base).total)}
                for arch in archs
            ]  # fmt: skip

        archive = search(self.space, evaluate, budget=self.budget, evaluations=self.args.evaluations)
        return min(archive.evaluations, key=lambda e: e.metrics["val_loss"]).arch


def differences(found: Mapping[str, Any], pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """a - b with a 95 % interval over paired seeds; below zero a is better."""
    return [
        {"of": a, "against": b} | paired_difference(found[a]["losses"], found[b]["losses"])._asdict() for a, b in pairs
    ]


@torch.no_grad()
def written_by(model: Transformer, count: int, length: int, bos: int, seed: int) -> np.ndarray:
    """Text that the model writes from the beginning of a document, [count, length] int64, at temperature 1."""
    generator = torch.Generator().manual_seed(seed)
    cache = model.new_cache(model.envelope, count, length)
    tokens = [torch.full((count, 1), bos)]
    while len(tokens) < length:
        logits = model(tokens[-1], cache=cache)[:, -1]
        tokens.append(torch.multinomial(logits.softmax(-1), 1, generator=generator))
    return torch.cat(tokens, 1).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--corpus", default="sotu")
    parser.add_argument("--documents", type=int, default=0, help="of each side that are tokenised; 0: all")
    parser.add_argument("--layers", type=int, default=2, help="the size: that of the model with so many layers")
    parser.add_argument("--params", type=int, default=0, help="the size, if it is not that")
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100, help="of healing")
    parser.add_argument("--correction", type=int, default=200, help="steps of the whole model on the text")
    parser.add_argument("--supernet", type=int, default=150, help="steps of the supernet")
    parser.add_argument("--evaluations", type=int, default=80, help="of the search")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--grid", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2], help="learning rates of healing")
    parser.add_argument("--correction-grid", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--windows", type=int, default=96, help="validation windows")
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--bos", type=int, default=2, help="token that documents of the model begin with")
    parser.add_argument("--parts", nargs="+", default=["teachers", "own_text", "shapes"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    study = Study(args)
    parts: dict[str, Callable[[], Any]] = {
        "teachers": study.teachers,
        "own_text": study.own_text,
        "shapes": lambda: {way: study.shapes(way) for way in ("text", "corrected: logits")},
    }
    options = {key: value for key, value in vars(args).items() if key not in ("model", "folder", "json", "parts")}
    result: dict[str, Any] = {"model": args.model.name, "size": study.params, **options, "threads": 1}
    for part in args.parts:
        result[part] = parts[part]()
        result |= {"cpu_seconds": round(study.spent, 1), "complete": set(parts) <= set(result)}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
