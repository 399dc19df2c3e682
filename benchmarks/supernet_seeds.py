"""How much of a supernet's ranking is its own chance? Several supernets of one study, judged by the same truth.

Trains the supernet of a finished study again, with other seeds or for other numbers of steps, and compares each, and
the mean of their scores, with the losses of the study's networks alone. A seed decides initial weights, the networks
that are drawn and the order of the text; the split of the text, the budget and the networks compared are the study's.

    python benchmarks/supernet_seeds.py runs/study_cpu --folder runs/seeds --train 0:8000 1:8000 0:20000
    python benchmarks/supernet_seeds.py runs/study_cpu --folder runs/seeds --train 0:8000 --label "lower rate" \
        --set train.lr=0.0025

With `--set` supernets are trained otherwise than the study's, and `--label` says how; they stand in the table for
themselves. A supernet's losses are stored when it is done; start it again to go on. JSON and table have all that the
folder holds.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from llmnas import Architecture
from llmnas.config import load_config
from llmnas.evaluate.quality import window_losses
from llmnas.evaluate.rank import rank_agreement
from llmnas.files import read_json, write_json
from llmnas.pipeline.context import Context
from llmnas.rng import torch_seed
from llmnas.runs import RunFolder
from llmnas.supernet import Transformer
from llmnas.tracking import Tracker
from llmnas.train.engine import start_processes
from llmnas.train.sampling import SupernetSampler
from llmnas.train.trainer import train

RESULT = Path(__file__).parent / "results" / "supernet_seeds.json"


def study(folder: Path, sets: list[str]) -> tuple[Context, dict[str, Any]]:
    """The run of the study, nothing in it changed but how supernets are trained, and what `llmnas correlate` found."""
    run = RunFolder(folder)
    context = Context(load_config(run.config, sets), run, Tracker(folder, "off", "seeds", {}))
    return context, read_json(run.result("correlate"))


def supernet_losses(context: Context, archs: list[Architecture], seed: int, steps: int) -> list[float]:
    """Train one supernet and measure the networks on the windows that `correlate` takes."""
    config = context.config
    settings = config.train.model_copy(update={"steps": steps, "save_every": steps, "log_every": max(1, steps // 20)})
    model = Transformer(config.space, torch_seed(seed, "init"))
    train(
        model,
        SupernetSampler(config.space, config.budget, settings.sampler, seed),
        context.sequences(settings.seq_len, seed),
        settings,
        start_processes(),
        log=lambda step, metrics: print(f"seed {seed}: step {step}, {metrics}", flush=True),
    )
    windows, _ = context.windows(config.search.windows)
    return [float(window_losses(model, arch, windows).mean()) for arch in archs]


def worth(losses: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """What a score [K] says about the losses alone [K]."""
    first = int(losses.argmin())
    return {
        **rank_agreement(losses, truth)._asdict(),
        "regret": float(truth[first] - truth.min()),
        "mean_gap": float((losses - truth).mean()),
        "losses": losses.tolist(),
    }


def stored(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Losses by number of steps and name of the supernet; a variant's name has a comma."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for path in sorted(folder.glob("seed*-steps*.json")):
        seed, steps, *label = path.stem.split("-", 2)
        name = ", ".join([seed.replace("seed", "seed "), *label])
        found.setdefault(steps.removeprefix("steps"), {})[name] = np.array(read_json(path))
    return found


def summary(found: dict[str, dict[str, np.ndarray]], truth: np.ndarray) -> dict[str, Any]:
    """By number of steps: every supernet, the mean of the scores of alike ones, and how those agree with each other.

    Args:
        found: by steps and name of the supernet the losses [K].
        truth: [K].
    """
    groups = {}
    for steps, everything in found.items():
        supernets = {name: losses for name, losses in everything.items() if "," not in name}
        pairs = itertools.combinations(supernets.values(), 2)
        groups[steps] = {
            "supernets": {name: worth(losses, truth) for name, losses in supernets.items()},
            "variants": {name: worth(everything[name], truth) for name in everything.keys() - supernets.keys()},
            "mean_of_scores": worth(np.mean(list(supernets.values()), axis=0), truth) if supernets else {},
            "supernet_with_supernet": [rank_agreement(a, b)._asdict() for a, b in pairs],
        }
    return groups


def tables(groups: dict[str, Any]) -> str:
    """For the page of results."""
    lines = ["| steps | supernet | tau with training alone | interval | regret of the first | mean gap |"]
    lines.append("|---|---|---|---|---|---|")
    for steps, group in groups.items():
        rows = dict(group["supernets"])
        if len(rows) > 1:
            rows[f"mean of the {len(rows)} scores"] = group["mean_of_scores"]
        rows |= dict(sorted(group["variants"].items()))
        lines += [
            f"| {int(steps):,} | {name} | {r['tau']:.3f} | [{r['low']:.3f}, {r['high']:.3f}] | {r['regret']:.3f} "
            f"| {r['mean_gap']:+.3f} |"
            for name, r in rows.items()
        ]
        if group["supernet_with_supernet"]:
            between = ", ".join(f"{pair['tau']:.2f}" for pair in group["supernet_with_supernet"])
            lines.append(f"| {int(steps):,} | one with another | {between} | | | |")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, write the JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="run folder of a study whose correlate is done")
    parser.add_argument("--folder", type=Path, required=True, help="where losses of supernets are kept")
    parser.add_argument("--train", nargs="+", required=True, metavar="SEED:STEPS")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="train.KEY=VALUE")
    parser.add_argument("--label", default="", help="what --set changes, in words")
    parser.add_argument("--json", type=Path, default=RESULT)
    args = parser.parse_args()
    if bool(args.sets) != bool(args.label) or set(args.label) & set("/,"):
        parser.error("--set and --label need each other; a label has no slash and no comma")
    context, correlation = study(args.study, args.sets)
    archs = [Architecture.from_dict(value) for value in correlation["architectures"]]
    truth = np.array(correlation["stand_alone_loss"]).mean(0)
    own = str(context.config.train.steps)
    for seed, steps in (map(int, item.split(":")) for item in args.train):
        path = args.folder / "-".join([f"seed{seed}", f"steps{steps}", *filter(None, [args.label])])
        path = path.with_name(f"{path.name}.json")
        if not path.exists():
            args.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, supernet_losses(context, archs, seed, steps))
    found = stored(args.folder)
    found[own] = {"of the study": np.array(correlation["supernet_loss"])} | found.get(own, {})
    groups = summary(found, truth)
    ceiling = rank_agreement(*np.array(correlation["stand_alone_loss"])[:2])._asdict()
    write_json(args.json, {"by_steps": groups, "seed_to_seed_alone": ceiling, "truth": truth.tolist()})
    print(tables(groups))


if __name__ == "__main__":
    main()
