"""What is left of a pretrained model right after it is cut, with its parts sorted or not.

python benchmarks/compress_study.py MODEL_FOLDER --out benchmarks/results/compress_slices_NAME.json

75 % and 50 % of the parameters: fewer FFN channels, narrower layers (hidden and FFN), or fewer layers; parts sorted by
importance, in the order of the folder, in random orders. With `--heal-steps` the narrower networks of every order are
then distilled for a short time, with logits and block outputs of the whole model as aims. What is measured is written
at once, and the same command goes on with it. Which healing is best: `compress_healing.py`. A whole compression beside
its baselines is `llmnas compress MODEL_FOLDER --baselines`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from llmnas.cost import count_params
from llmnas.data import Sequences, encode_texts, open_corpus, read_model_tokenizer, split_documents
from llmnas.evaluate.quality import window_losses
from llmnas.files import read_json, write_json
from llmnas.pipeline.pruned import pruned
from llmnas.rng import generator
from llmnas.space import Architecture, FixedShape
from llmnas.supernet import Transformer, extract
from llmnas.supernet.importance import Importance, importance, layer_importance, reorder
from llmnas.train.distill import Original
from llmnas.train.engine import start_processes
from llmnas.train.sampling import OneNetwork
from llmnas.train.settings import TrainSettings
from llmnas.train.trainer import train
from llmnas.train.warmstart import Pretrained, read_pretrained, warm_start

SHARES = (0.75, 0.5)


class Text(NamedTuple):
    """A corpus in a model's own tokens, [tokens] each, split by whole documents."""

    train: np.ndarray
    validation: np.ndarray
    eos_id: int

    def sequences(self, seq_len: int, seed: int) -> Sequences:
        """The training side in the order of a seed."""
        return Sequences(self.train, seq_len, seed, self.eos_id)

    def windows(self, seq_len: int, count: int) -> np.ndarray:
        """[count, seq + 1] of the validation side."""
        return Sequences(self.validation, seq_len, 0).fixed(count)

    def calibration(self, seq_len: int, count: int) -> list[torch.Tensor]:
        """Batches of training windows that importance is measured on."""
        chosen = self.sequences(seq_len, 0).fixed(count)
        return [torch.from_numpy(chosen[i : i + 4]) for i in range(0, len(chosen), 4)]


def read_text(model: Path, vocab_size: int, corpus: str, documents: int = 0) -> Text:
    """A corpus with a tenth of its documents held out; of each side the first `documents`, 0 takes all."""
    tokenizer = read_model_tokenizer(model, vocab_size)
    found = open_corpus(corpus)
    split = split_documents(found, 0.1, 0)
    texts: dict[str, list[str]] = {"train": [], "validation": []}
    for document in found:
        texts[split.side(document.text)].append(document.text)
    sides = [
        np.concatenate(
            [[*ids, tokenizer.eos_id] for ids in encode_texts(tokenizer.tokenizer, side[: documents or None])]
        )
        for side in texts.values()
    ]
    return Text(*sides, tokenizer.eos_id)


def started(pretrained: Pretrained) -> Transformer:
    model = Transformer(FixedShape(pretrained.base, pretrained.arch), seed=None)
    warm_start(model, pretrained)
    return model.eval()


def at_random(scores: Importance, seed: int) -> Importance:
    rng = generator(seed, "random order")

    def noise(part: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(rng.random(score.shape)) for name, score in part.items()}

    hidden = torch.from_numpy(rng.random(scores.hidden.shape))
    return Importance(hidden, *map(noise, (scores.groups, scores.queries, scores.channels, scores.experts)))


def fewer_channels(pretrained: Pretrained, params: int) -> Architecture:
    """The whole network with as many FFN channels in every layer as `params` allows."""
    whole = pretrained.arch
    for ffn_size in range(whole.kept[0][1].ffn_size, 0, -1):
        arch = replace(whole, layers=tuple(spec and replace(spec, ffn_size=ffn_size) for spec in whole.layers))
        if count_params(arch, pretrained.base).total <= params:
            return arch
    raise ValueError(f"even one channel is more than {params} parameters")


def slices(
    pretrained: Pretrained, windows: np.ndarray, calibration: list[torch.Tensor], orders: int, layer_batches: int
) -> list[dict]:
    """Losses right after cutting, of every share, way to cut and order."""
    stored = started(pretrained)
    scores = importance(stored, [batch[:, :-1] for batch in calibration])
    layers = layer_importance(stored, calibration[:layer_batches])
    sorted_model = started(pretrained)
    reorder(sorted_model, scores)
    total = count_params(pretrained.arch, pretrained.base).total
    space = FixedShape(pretrained.base, pretrained.arch)
    rows = [{"cut": "nothing", "params": total, "loss": float(window_losses(stored, None, windows).mean())}]
    for share in SHARES:
        params = int(share * total)
        cuts = {"ffn": fewer_channels(pretrained, params), "width": pruned("width", space, params, layers)}
        for cut, arch in cuts.items():
            found = {"sorted": sorted_model, "stored": stored}
            row = {name: float(window_losses(model, arch, windows).mean()) for name, model in found.items()}
            row["random"] = []
            for seed in range(orders):
                shuffled = started(pretrained)
                reorder(shuffled, at_random(scores, seed))
                row["random"].append(float(window_losses(shuffled, arch, windows).mean()))
            rows.append({"share": share, "cut": cut, "params": count_params(arch, pretrained.base).total, **row})
        arch = pruned("depth", space, params, layers)
        row = {"sorted": float(window_losses(stored, arch, windows).mean())}
        last = pruned("last_layers", space, params, layers)
        row["last dropped"] = float(window_losses(stored, last, windows).mean())
        row["random"] = []
        for seed in range(orders):
            drawn = generator(seed, "random layers").random(len(layers)).tolist()
            row["random"].append(float(window_losses(stored, pruned("depth", space, params, drawn), windows).mean()))
        rows.append({"share": share, "cut": "depth", "params": count_params(arch, pretrained.base).total, **row})
        print(json.dumps(rows[-3:]), flush=True)
    return [*rows, {"layer_importance": layers}]


def healed(whole: Transformer, arch: Architecture, text: Text, windows: np.ndarray, settings: TrainSettings) -> float:
    """Loss of a network, cut out of `whole` and taught by it for a short time."""
    student = extract(whole, arch).requires_grad_(True).train()
    guide = Original(whole, settings.distill, [i for i, _ in arch.kept])
    sequences = text.sequences(settings.seq_len, 1)
    train(student, OneNetwork(student.envelope), sequences, settings, start_processes(), guide=guide)
    return float(window_losses(student, None, windows).mean())


def in_order(pretrained: Pretrained, order: str, calibration: list[torch.Tensor]) -> Transformer:
    """The model with its parts `sorted`, as they are `stored`, or in the first `random` order."""
    model = started(pretrained)
    if order != "stored":
        scores = importance(model, [batch[:, :-1] for batch in calibration])
        reorder(model, scores if order == "sorted" else at_random(scores, 0))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--corpus", default="sotu")
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--windows", type=int, default=64, help="validation windows")
    parser.add_argument("--calibration", type=int, default=64, help="training windows that importance is measured on")
    parser.add_argument("--orders", type=int, default=3, help="random orders")
    parser.add_argument("--layer-batches", type=int, default=16, help="of 4 windows, that layers are judged on")
    parser.add_argument("--documents", type=int, default=0, help="of each side that are tokenised; 0: all")
    parser.add_argument("--heal-steps", type=int, default=0, help="of distilling every narrower network; 0: none")
    parser.add_argument("--heal-batch", type=int, default=2, help="sequences of a step of it")
    parser.add_argument("--heal-lr", type=float, default=3e-4, help="its learning rate")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pretrained = read_pretrained(args.model)
    total = count_params(pretrained.arch, pretrained.base).total
    text = read_text(args.model, pretrained.base.vocab_size, args.corpus, args.documents)
    windows = text.windows(args.seq, args.windows)
    calibration = text.calibration(args.seq, args.calibration)
    asked = {
        "model": args.model.name, "parameters": total, "windows": len(windows), "seq": args.seq,
        "calibration": args.calibration, "threads": 1,
    }  # fmt: skip
    result: dict[str, Any] = read_json(args.out) if args.out.exists() else {**asked, "cpu_seconds": 0.0}
    if {key: result[key] for key in asked} != asked:
        parser.error(f"{args.out}: measured with other options; choose another --out")

    def measured(key: str, compute: Callable[[], Any]) -> None:
        """One piece of the result, kept at once; a piece that is there is not measured again."""
        if key in result:
            return
        begun = time.process_time()
        result[key] = compute()
        result["cpu_seconds"] = round(result["cpu_seconds"] + time.process_time() - begun, 1)
        print(key, result[key], flush=True)
        write_json(args.out, result)

    measured("slices", lambda: slices(pretrained, windows, calibration, args.orders, args.layer_batches))
    if not args.heal_steps:
        return
    teach = {"source": "original", "weight": 0.5, "top_k": 64, "blocks": 0.1}
    settings = TrainSettings(
        steps=args.heal_steps, batch_size=args.heal_batch, seq_len=args.seq, lr=args.heal_lr, threads=1, distill=teach
    )
    space = FixedShape(pretrained.base, pretrained.arch)
    measured("distillation", lambda: settings.model_dump(mode="json", include={"steps", "batch_size", "lr", "distill"}))
    for order, share in itertools.product(("sorted", "stored", "random"), SHARES):
        arch = pruned("width", space, int(share * total), [])
        model = partial(in_order, pretrained, order, calibration)
        measured(f"width {share:.0%}, {order}, healed", lambda: healed(model(), arch, text, windows, settings))  # noqa: B023


if __name__ == "__main__":
    main()
