"""Train the found architecture and hand-designed ones of equal size alone: same data, tokens and seeds."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmnas.cost import hand_designed
from llmnas.evaluate.rank import paired_difference
from llmnas.files import write_json
from llmnas.pareto import Archive
from llmnas.pipeline.context import Context
from llmnas.pipeline.decide import chosen
from llmnas.pipeline.stand_alone import train_alone
from llmnas.space import Architecture


def retrain(context: Context) -> dict[str, Any]:
    """Write `retrain/result.json`: every run, and the found model against each hand-designed one."""
    config, run = context.config, context.run
    archive = Archive.load(run.require(run.evaluations, "search"))
    found = chosen(context, archive)
    archive.close()
    params = int(found.metrics["params"])
    head_dim = max(config.space.head_dim.choices)
    networks: dict[str, Architecture] = {"found": found.arch}
    for family in config.retrain.hand_designed:
        networks[family] = hand_designed(family, config.space.base, head_dim, params)
    settings = config.stage_settings("retrain", config.retrain.train)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in networks}
    for seed in range(config.retrain.seeds):
        for name, arch in networks.items():
            folder = run.stand_alone("retrain", f"{name}-{arch.id}", seed)
            inherit = config.retrain.inherit and name == "found"
            note = f"{name} {seed + 1}/{config.retrain.seeds}"
            runs[name].append(train_alone(context, arch, settings, seed, folder, note, inherit=inherit))
    losses = {name: np.array([r["val_loss"] for r in rows]) for name, rows in runs.items()}
    comparisons = []
    for name in config.retrain.hand_designed:
        delta = paired_difference(losses["found"], losses[name])
        ends = {"low": delta.low, "high": delta.high} if np.isfinite(delta.low) else {}
        comparisons.append({"against": name, "difference": delta.mean, **ends, "clear": delta.clear})
    result = {"found": found.arch.id, "runs": runs, "comparisons": comparisons}
    write_json(run.result("retrain"), result)
    run.record("retrain", networks=len(networks), seeds=config.retrain.seeds)
    return result


def verdict(comparison: dict[str, Any]) -> str:
    """One honest sentence: found minus reference in nats, negative is better."""
    mean = comparison["difference"]
    if "low" not in comparison:
        return f"{mean:+.4f} nats from one seed: no statement about noise"
    interval = f"{mean:+.4f} nats [{comparison['low']:+.4f}, {comparison['high']:+.4f}]"
    if not comparison["clear"]:
        return f"{interval}: within seed noise"
    return f"{interval}: the found model is {'better' if mean < 0 else 'WORSE'}"
