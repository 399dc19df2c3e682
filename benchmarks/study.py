"""Gather a finished study (`search_configs/study_cpu.yaml`) into one JSON, one figure and one printed table.

    python benchmarks/study.py runs/study_cpu

writes benchmarks/results/study_cpu.json and docs/images/study_cpu.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from llmnas.archive import Archive
from llmnas.files import read_json, read_yaml
from llmnas.report.plots import study_png
from llmnas.runs import RunFolder
from llmnas.tracking import read_metrics

ROOT = Path(__file__).parents[1]


def gather(run: RunFolder) -> dict[str, Any]:
    """Every number that the text quotes, and what they were computed from."""
    correlation, comparison = read_json(run.result("correlate")), read_json(run.result("retrain"))
    archive = Archive.load(run.evaluations)
    best = min(archive.evaluations, key=lambda e: e.metrics["val_loss"])
    search = {
        "evaluations": len(archive),
        "found": {"id": best.arch.id, "architecture": best.arch.to_dict(), "metrics": best.metrics},
        "val_loss": [e.metrics["val_loss"] for e in archive.evaluations],
    }
    archive.close()
    alone = correlation["cpu_seconds"]["stand_alone"]
    once = sum(alone[: len(correlation["params"])])
    nas = correlation["cpu_seconds"]["supernet"] + (run.recorded("search")["cpu_seconds"] or 0.0)
    return {
        "config": read_yaml(run.config),
        "versions": read_json(run.manifest)["versions"],
        "stages": read_json(run.manifest)["stages"],
        "supernet_curve": [r for r in read_metrics(run.metrics) if "val_loss_random" in r],
        "correlation": correlation,
        "seed_noise": seed_noise(np.array(correlation["stand_alone_loss"])),
        "search": search,
        "comparison": {**comparison, "runs": {k: _short(v) for k, v in comparison["runs"].items()},
                       "lr_grid": {k: _short(v) for k, v in comparison["lr_grid"].items()}},
        "cost": {"supernet_and_search_cpu_seconds": nas, "each_once_cpu_seconds": once, "ratio": once / nas,
                 "one_network_cpu_seconds": float(np.mean(alone))},
    }  # fmt: skip


def seed_noise(losses: np.ndarray) -> dict[str, float]:
    """Standard deviations in nats: between architectures (of the mean over seeds) and between seeds.

    Args:
        losses: [seeds, architectures].
    """
    return {
        "between_architectures": float(losses.mean(0).std(ddof=1)),
        "between_seeds": float(np.sqrt(losses.var(0, ddof=1).mean())),
        "pearson_seed_to_seed": float(stats.pearsonr(losses[0], losses[1]).statistic),
    }


def _short(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k not in ("identity", "inherit")} for r in runs]


def main() -> None:
    """Write the files and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run folder of the study")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "study_cpu.json")
    parser.add_argument("--png", type=Path, default=ROOT / "docs" / "images" / "study_cpu.png")
    args = parser.parse_args()
    found = gather(RunFolder(args.run))
    for path in (args.json, args.png):
        path.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(found, separators=(",", ":")) + "\n", encoding="utf-8")
    study_png(args.png, found["correlation"], found["comparison"])
    for name, a in found["correlation"]["agreement"].items():
        print(f"{name:14} tau {a['tau']:+.3f} [{a['low']:+.3f}, {a['high']:+.3f}]  rho {a['spearman']:+.3f}")
    print(json.dumps({"noise": found["seed_noise"], "cost": found["cost"]}, indent=1))
    for name, runs in found["comparison"]["runs"].items():
        losses = [r["val_loss"] for r in runs]
        print(f"{name:8} {runs[0]['params']:,} lr {runs[0]['lr']:g} loss {np.mean(losses):.4f} {np.round(losses, 4)}")
    for c in found["comparison"]["comparisons"]:
        print(c)


if __name__ == "__main__":
    main()
