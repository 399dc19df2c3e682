"""What is left of a pretrained model when it is cut, with its parts sorted or not, and after a short distillation.

python benchmarks/compress_study.py MODEL_FOLDER --out benchmarks/results/compress_slices_NAME.json

75 % and 50 % of the parameters: fewer FFN channels, narrower layers (hidden and FFN), or fewer layers.
Right after cutting: parts sorted by importance, in the order of the folder, in random orders. Then the sorted width
network is trained for a few steps three ways: on the text, with the model's logits, with logits and block outputs.
A whole compression beside its baselines is `llmnas compress MODEL_FOLDER --baselines`.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from llmnas.cost import count_params
from llmnas.data import Sequences, encode_texts, open_corpus, read_model_tokenizer, split_documents
from llmnas.evaluate.quality import window_losses
from llmnas.pipeline.pruned import pruned
from llmnas.rng import generator
from llmnas.space import Architecture, FixedShape
from llmnas.supernet import Transformer, extract
from llmnas.supernet.importance import Importance, importance, layer_importance, reorder
from llmnas.train.distill import Original
from llmnas.train.engine import start_processes
from llmnas.train.sampling import OneNetwork
from llmnas.train.settings import DistillSettings, TrainSettings
from llmnas.train.trainer import train
from llmnas.train.warmstart import Pretrained, read_pretrained, warm_start

SHARES = (0.75, 0.5)
WAYS = {
    "text": {},
    "logits": {"source": "original", "weight": 0.5, "top_k": 64},
    "logits and blocks": {"source": "original", "weight": 0.5, "top_k": 64, "blocks": 0.1},
}


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


def slices(pretrained: Pretrained, windows: np.ndarray, calibration: list[torch.Tensor], orders: int) -> list[dict]:
    """Losses right after cutting, of every share, way to cut and order."""
    stored = started(pretrained)
    scores = importance(stored, [batch[:, :-1] for batch in calibration])
    layers = layer_importance(stored, calibration)
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


def healing(
    pretrained: Pretrained, sequences: Sequences, windows: np.ndarray, calibration: list[torch.Tensor], args
) -> list[dict]:
    """The sorted width network of every share after a few steps, each way."""
    whole = started(pretrained)
    reorder(whole, importance(whole, [batch[:, :-1] for batch in calibration]))
    total = count_params(pretrained.arch, pretrained.base).total
    rows = []
    for share in SHARES:
        arch = pruned("width", FixedShape(pretrained.base, pretrained.arch), int(share * total), [])
        for way, distill in WAYS.items():
            settings = TrainSettings(
                steps=args.steps, batch_size=args.batch, seq_len=args.seq, lr=args.lr, threads=1, distill=distill
            )
            student = extract(whole, arch)
            guide = Original(whole, DistillSettings(**distill), range(len(arch.layers))) if distill else None
            begun = time.process_time()
            outcome = train(student, OneNetwork(student.envelope), sequences, settings, start_processes(), guide=guide)
            loss = float(window_losses(student, None, windows).mean())
            rows.append({
                "share": share, "way": way, "tokens": outcome.tokens, "loss": loss,
                "cpu_seconds": round(time.process_time() - begun, 1),
            })  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--corpus", default="sotu")
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--windows", type=int, default=64, help="validation windows")
    parser.add_argument("--calibration", type=int, default=64, help="training windows that importance is measured on")
    parser.add_argument("--orders", type=int, default=3, help="random orders")
    parser.add_argument("--steps", type=int, default=100, help="of healing; 0 leaves it out")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--speeches", type=int, default=0, help="of the train side that are tokenised; 0: all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pretrained = read_pretrained(args.model)
    tokenizer = read_model_tokenizer(args.model, pretrained.base.vocab_size)
    corpus = open_corpus(args.corpus)
    split = split_documents(corpus, 0.1, 0)
    texts: dict[str, list[str]] = {"train": [], "validation": []}
    for document in corpus:
        texts[split.side(document.text)].append(document.text)
    if args.speeches:
        texts = {side: found[: args.speeches] for side, found in texts.items()}
    tokens = {
        side: np.concatenate([[*ids, tokenizer.eos_id] for ids in encode_texts(tokenizer.tokenizer, found)])
        for side, found in texts.items()
    }
    sequences = Sequences(tokens["train"], args.seq, 0, tokenizer.eos_id)
    windows = Sequences(tokens["validation"], args.seq, 0).fixed(args.windows)
    chosen = sequences.fixed(args.calibration)
    calibration = [torch.from_numpy(chosen[i : i + 4]) for i in range(0, len(chosen), 4)]
    begun = time.process_time()
    result = {
        "model": args.model.name,
        "parameters": count_params(pretrained.arch, pretrained.base).total,
        "windows": len(windows), "seq": args.seq, "calibration": len(chosen),
        "slices": slices(pretrained, windows, calibration, args.orders),
        "healing": healing(pretrained, sequences, windows, calibration, args) if args.steps else [],
        "cpu_seconds": round(time.process_time() - begun, 1),
        "threads": 1,
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
