"""The tables of `entanglement.py`: how each supernet ranks, how much higher its losses are, whether gradients conflict.

    python benchmarks/entanglement_report.py runs/entanglement [--json benchmarks/results/entanglement.json]

Trainings that are missing are left out. Gradients of every pair of networks are measured here and stored in the folder.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from entanglement import ALONE, ALONE_LONGER, DIMENSIONS, SAMPLERS, SEEDS, SUPERNET, SUPERNET_LONGER, Job, Study, jobs
from interleave import machine
from scipy import stats

from llmnas.cost import count_params
from llmnas.data import Sequences
from llmnas.evaluate.conflict import Conflict, conflict, network_gradient
from llmnas.evaluate.ranking import banded_agreement
from llmnas.files import read_json, write_json

GRADIENT_WINDOWS = 64
PARTS = {"all": "", "embedding": "embedding", "attention": ".attention.", "feed-forward": ".ffn."}


def alone_losses(study: Study, steps: int) -> np.ndarray:
    """Losses of the networks trained alone for so many steps, [SEEDS, networks]; NaN where one is missing."""
    found = [
        [study.stored(Job("alone", str(i), seed, steps)) for i in range(len(study.networks))] for seed in range(SEEDS)
    ]
    return np.array([[one["losses"][0] if one else np.nan for one in row] for row in found])


def whole_rows(losses: np.ndarray) -> np.ndarray:
    """The seeds that every network has."""
    return losses[np.isfinite(losses).all(1)]


def sampler_losses(study: Study, name: str, steps: int) -> np.ndarray:
    """Losses with a supernet's weights, of the networks and last of the middle one, [seeds done, networks + 1]."""
    found = [study.stored(Job("sampler", name, seed, steps)) for seed in range(SEEDS)]
    rows = [one["losses"] for one in found if one]
    return np.array(rows).reshape(len(rows), len(study.networks) + 1)


def agreement(predicted: np.ndarray, actual: np.ndarray) -> dict[str, float]:
    """Kendall's tau-b of two scores [networks] with its 95 % bootstrap interval: one band that holds all networks."""
    (band,) = banded_agreement(predicted, actual, np.zeros(len(actual)), 1)
    return band.tau._asdict()


def ranking(study: Study, name: str, steps: int, alone: np.ndarray) -> dict[str, Any]:
    """What one sampler's supernets say of the networks, against `alone` [seeds, networks].

    `tau` is that of the mean over supernets with the mean over seeds alone; `each`: of every supernet by itself.
    """
    losses, truth = sampler_losses(study, name, steps)[:, :-1], alone.mean(0)
    found = {
        "seeds": len(losses),
        "tau": agreement(losses.mean(0), truth),
        "each": [float(stats.kendalltau(row, truth).statistic) for row in losses],
        "gap": [float((row - truth).mean()) for row in losses],
        "spread": float(losses.mean(0).std(ddof=1)),
        "losses": losses.tolist(),
    }
    if len(losses) > 1:
        found["tau_between_supernets"] = float(stats.kendalltau(losses[0], losses[1]).statistic)
    return found


def truth(study: Study, steps: int) -> dict[str, Any]:
    """What training alone says: the ceiling that its seeds set, and what parameters alone would say.

    Seeds are compared over the networks that have been trained with all of them.
    """
    every = alone_losses(study, steps)
    losses, repeated = whole_rows(every), every[:, np.isfinite(every).all(0)]
    params = np.array([count_params(arch, study.space.base).total for arch in study.networks])
    found: dict[str, Any] = {
        "losses": [[None if np.isnan(loss) else loss for loss in row] for row in every.tolist()],
        "between_networks": float(losses.mean(0).std(ddof=1)),
        "params_only": agreement(-params, losses.mean(0)),
        "repeated": repeated.shape[1],
    }
    if repeated.shape[1] >= 3:
        found["seed_to_seed"] = agreement(repeated[0], repeated[1])
        found["between_seeds"] = float(np.sqrt(repeated.var(0, ddof=1).mean()))
    return found


def dimensions(study: Study) -> dict[str, Any]:
    """Loss of the middle network with weights shared over one dimension, less that with nothing shared; by seed."""

    def losses(name: str) -> dict[int, float]:
        found = {seed: study.stored(Job("dimension", name, seed, SUPERNET)) for seed in range(SEEDS)}
        return {seed: one["losses"][-1] for seed, one in found.items() if one}

    nothing = losses("nothing")
    whole = dict(enumerate(sampler_losses(study, "uniform, whole space", SUPERNET)[:, -1].tolist()))
    rows = {name: (study.one_dimension(name).size(), losses(name)) for name in DIMENSIONS}
    rows["everything"] = (study.space.size(), whole)
    return {
        name: {
            "networks": size,
            "losses": list(found.values()),
            "gaps": [loss - nothing[seed] for seed, loss in found.items() if seed in nothing],
        }
        for name, (size, found) in rows.items()
    }


def sides(study: Study, losses: np.ndarray, alone: np.ndarray) -> dict[str, float]:
    """Spearman's rho of the gap (supernet less alone) with each dimension, over the networks."""
    gap = losses[:, :-1].mean(0) - alone.mean(0)
    values = {
        "hidden_size": [arch.hidden_size for arch in study.networks],
        "depth": [arch.depth for arch in study.networks],
        "query heads": [arch.kept[0][1].kv_heads * arch.kept[0][1].queries_per_group for arch in study.networks],
        "mean ffn_size": [np.mean([spec.ffn_size for _, spec in arch.kept]) for arch in study.networks],
    }
    return {name: float(stats.spearmanr(gap, value).statistic) for name, value in values.items()}


def gradients(study: Study, job: Job) -> dict[str, Any]:
    """Conflict between all pairs of networks on the same text, by part of the network; stored.

    `other_text`: the same network on two texts of equal length, which is what cosines are like for noise alone.
    """
    path = study.folder / f"gradients-{job.label}.json"
    if path.exists():
        stored: dict[str, Any] = read_json(path)
        return stored
    start = time.process_time()
    text = Sequences(study.tokens, study.settings.seq_len, 0).fixed(2 * GRADIENT_WINDOWS)
    model = study.supernet(job)
    first, second = (
        [network_gradient(model, arch, half) for arch in study.networks]
        for half in (text[:GRADIENT_WINDOWS], text[GRADIENT_WINDOWS:])
    )
    found: dict[str, Any] = {}
    for part, key in PARTS.items():
        of = [{name: value for name, value in gradient.items() if key in name} for gradient in first]
        # two networks may have no layer in common
        pairs = [conflict(a, b) for a, b in itertools.combinations(of, 2) if a.keys() & b.keys()]
        found[part] = mean_of(pairs)
    found["other_text"] = mean_of([conflict(a, b) for a, b in zip(first, second, strict=True)])
    crossed = [conflict(first[i], second[j]) for i, j in itertools.combinations(range(len(first)), 2)]
    found["other_network_other_text"] = mean_of(crossed)
    write_json(path, {**found, "cpu_seconds": time.process_time() - start})
    return found


def mean_of(pairs: Sequence[Conflict]) -> dict[str, float]:
    """Means over pairs; `rate` is the share of pairs that conflict."""
    return {
        "pairs": len(pairs),
        "cosine": float(np.mean([pair.cosine for pair in pairs])),
        "least": min(pair.cosine for pair in pairs),
        "rate": float(np.mean([pair.cosine < 0 for pair in pairs])),
        "opposed": float(np.mean([pair.opposed for pair in pairs])),
    }


def gather(study: Study) -> dict[str, Any]:
    """Every number that the page quotes."""
    alone = whole_rows(alone_losses(study, ALONE))
    if not len(alone):
        raise SystemExit(f"{study.folder}: not every network was trained alone yet; run entanglement.py first")
    done = [name for name in SAMPLERS if len(sampler_losses(study, name, SUPERNET))]
    found: dict[str, Any] = {
        "machine": machine(),
        "alone": truth(study, ALONE),
        "networks": [
            {"architecture": arch.to_dict(), "params": count_params(arch, study.space.base).total}
            for arch in study.networks
        ],
        "samplers": {name: ranking(study, name, SUPERNET, alone) for name in done},
        "dimensions": dimensions(study),
        "sides": {name: sides(study, sampler_losses(study, name, SUPERNET), alone) for name in done},
        "gradients": {name: gradients(study, Job("sampler", name, 0, SUPERNET)) for name in done},
        "cpu_seconds": sum(one["cpu_seconds"] for job in jobs() if (one := study.stored(job))),
    }
    band = "uniform, band"
    if len(sampler_losses(study, band, SUPERNET_LONGER)):
        found["longer supernet"] = ranking(study, band, SUPERNET_LONGER, alone)
        found["gradients"][f"{band}, {SUPERNET_LONGER:,} networks"] = gradients(
            study, Job("sampler", band, 0, SUPERNET_LONGER)
        )
    longer = whole_rows(alone_losses(study, ALONE_LONGER))
    if len(longer):
        found["alone longer"] = truth(study, ALONE_LONGER)
        found["alone longer"]["tau_with_shorter"] = agreement(alone.mean(0), longer.mean(0))
        found["samplers, alone longer"] = {name: ranking(study, name, SUPERNET, longer) for name in done}
        if "longer supernet" in found:
            found["longer supernet, alone longer"] = ranking(study, band, SUPERNET_LONGER, longer)
    return found


def tau_text(tau: dict[str, float]) -> str:
    """0.12 [-0.20, 0.40]."""
    return f"{tau['value']:.2f} [{tau['low']:.2f}, {tau['high']:.2f}]"


def sampler_table(found: dict[str, Any]) -> list[str]:
    """Markdown: a row a sampler."""
    longer = found.get("samplers, alone longer", {})
    rows = [
        f"| trained | tau with {ALONE} steps alone | each supernet | supernet with supernet | mean gap | spread "
        f"| tau with {ALONE_LONGER:,} steps alone |",
        "|---|---|---|---|---|---|---|",
    ]
    named = dict(found["samplers"])
    if "longer supernet" in found:
        named[f"uniform, band, {SUPERNET_LONGER:,} networks"] = found["longer supernet"]
        if "longer supernet, alone longer" in found:
            longer = longer | {f"uniform, band, {SUPERNET_LONGER:,} networks": found["longer supernet, alone longer"]}
    for name, row in named.items():
        between = f"{row['tau_between_supernets']:.2f}" if "tau_between_supernets" in row else ""
        rows.append(
            f"| {name} | {tau_text(row['tau'])} | {', '.join(f'{tau:.2f}' for tau in row['each'])} | {between} "
            f"| {np.mean(row['gap']):+.3f} | {row['spread']:.3f} | {tau_text(longer[name]['tau']) if longer else ''} |"
        )
    alone, after = found["alone"], found.get("alone longer", {})
    ceiling = tau_text(alone["seed_to_seed"]) if "seed_to_seed" in alone else ""
    which = f"one seed alone against the other, {alone['repeated']} networks"
    rows.append(f"| {which} | {ceiling} | | | | {alone['between_networks']:.3f} | |")
    params = tau_text(after["params_only"]) if after else ""
    rows.append(f"| parameters only | {tau_text(alone['params_only'])} | | | | | {params} |")
    if after:
        rows.append(f"| {ALONE} steps alone | | | | | | {tau_text(after['tau_with_shorter'])} |")
    return rows


def dimension_table(found: dict[str, Any]) -> list[str]:
    """Markdown: a row a dimension."""
    rows = ["| varies | networks | loss of the middle network | gap, by seed |", "|---|---|---|---|"]
    for name, row in found["dimensions"].items():
        if not row["losses"]:
            continue
        losses, gaps = np.mean(row["losses"]), ", ".join(f"{gap:+.3f}" for gap in row["gaps"])
        rows.append(f"| {name} | {row['networks']:,} | {losses:.3f} | {gaps} |")
    return rows


def gradient_table(found: dict[str, Any]) -> list[str]:
    """Markdown: a row a supernet of seed 0."""
    rows = [
        "| trained | cosine (least) | pairs that conflict | signs opposed | embedding | attention | feed-forward "
        "| same network, other text | other network, other text: cosine, pairs below 0 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found["gradients"].items():
        whole, parts = row["all"], [f"{row[part]['cosine']:.2f}" for part in PARTS if part != "all"]
        rows.append(
            f"| {name} | {whole['cosine']:.2f} ({whole['least']:.2f}) | {whole['rate']:.0%} | {whole['opposed']:.0%} "
            f"| {' | '.join(parts)} | {row['other_text']['cosine']:.2f} "
            f"| {row['other_network_other_text']['cosine']:.2f}, {row['other_network_other_text']['rate']:.0%} |"
        )
    return rows


def main() -> None:
    """Gather, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder of entanglement.py")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = gather(Study(args.folder))
    if args.json:
        write_json(args.json, found)
    for table in (sampler_table, dimension_table, gradient_table):
        print("\n".join(table(found)), end="\n\n")
    for name, rhos in found["sides"].items():
        print(f"rho of the gap, {name}:", {key: round(value, 2) for key, value in rhos.items()})
    print(f"{found['cpu_seconds']:.0f} CPU seconds of training")


if __name__ == "__main__":
    main()
