"""What a busy machine costs a step by number of threads: that of the quickstart, quiet and beside two busy programs.

    python benchmarks/thread_choice.py --json benchmarks/results/thread_choice.json

Four trainings of the same config, a process each, run in turn for a few seconds at a time, so that all meet the same
machine; between turns they wait. Three phases: as the machine is, beside two processes that only compute, as it was.
- `1 thread`, `all, sleeping`: `train.threads: 1` and `0`, OpenMP's threads sleep where they wait (as llmnas sets it);
- `all, spinning`: torch loaded before llmnas, so OpenMP waits as it does by default: what there was before;
- `auto`: `train.threads: auto`, its measuring, checkpoints and switches included.
Printed by phase: seconds a step, and `auto` over the better of one and all threads: median of the turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
CONFIG = HERE.parent / "search_configs" / "quickstart.yaml"
ARMS: dict[str, int | str] = {"1 thread": 1, "all, spinning": 0, "all, sleeping": 0, "auto": "auto"}
PHASES = {"quiet": 0, "beside two busy programs": 2, "quiet again": 0}


def train_in_turns(arm: str, config: Path) -> None:
    """One training; a line `seconds` on stdin lets it go on for so long, an empty one ends it."""
    if arm == "all, spinning":
        import torch  # noqa: F401
    import numpy as np

    from llmnas.config import load_config
    from llmnas.data import Sequences
    from llmnas.supernet import Transformer
    from llmnas.train.engine import start_processes
    from llmnas.train.sampling import SupernetSampler
    from llmnas.train.trainer import train

    loaded = load_config(config, [])
    settings = loaded.train.model_copy(
        update={"threads": ARMS[arm], "steps": 10**6, "log_every": 1, "save_every": 10**6}
    )
    text = np.random.default_rng(0).integers(0, loaded.space.base.vocab_size, 10**6).astype(np.uint16)
    model = Transformer(loaded.space, seed=0)
    sampler = SupernetSampler(loaded.space, loaded.budget, settings.sampler, seed=0)
    turn: dict[str, Any] = {"end": 0.0, "begun": 0.0, "cpu": 0.0, "steps": 0, "threads": []}

    def wait(_step: int, _metrics: dict[str, float]) -> None:
        import torch

        now = time.perf_counter()
        turn["steps"] += 1
        turn["threads"].append(torch.get_num_threads())
        if now < turn["end"]:
            return
        report = {
            "seconds": (now - turn["begun"]) / turn["steps"],
            "cpu_seconds": (time.process_time() - turn["cpu"]) / turn["steps"],
            "steps": turn["steps"],
            "threads": turn["threads"],
        }
        print(json.dumps(report), flush=True)
        asked = sys.stdin.readline().strip()
        if not asked:
            os._exit(0)
        begun = time.perf_counter()
        turn.update(begun=begun, end=begun + float(asked), cpu=time.process_time(), steps=0, threads=[])

    with tempfile.TemporaryDirectory() as folder:
        sequences = Sequences(text, settings.seq_len, seed=0)
        turn["begun"] = time.perf_counter()
        train(model, sampler, sequences, settings, start_processes(), folder=Path(folder), log=wait)


class Arm:
    """The process of one training."""

    def __init__(self, name: str, config: Path) -> None:
        clean = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")}
        command = [sys.executable, __file__, "--arm", name, "--config", str(config)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**clean, "DS_ACCELERATOR": "cpu"}
        )

    def read(self) -> dict[str, Any]:
        """The report of a turn; the first is that of the first step."""
        assert self._process.stdout
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found

    def go(self, seconds: float) -> dict[str, Any]:
        """Train for so long, at least a step; the mean seconds of a step, how many, and their numbers of threads."""
        assert self._process.stdin
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        return self.read()

    def end(self) -> None:
        """Stop the process."""
        self._process.kill()
        self._process.wait()


def measure(config: Path, turns: int, seconds: float) -> list[dict[str, Any]]:
    """A row for every turn of every phase."""
    arms = {name: Arm(name, config) for name in ARMS}
    for arm in arms.values():
        arm.read()
    rows, busy = [], []
    try:
        for phase, neighbours in PHASES.items():
            busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(neighbours)]
            for turn in range(turns):
                order = list(ARMS)[turn % len(ARMS) :] + list(ARMS)[: turn % len(ARMS)]
                found = {name: arms[name].go(seconds) for name in order}
                rows.append({"phase": phase, "turn": turn, "load": os.getloadavg()[0], "arms": found})
                print(phase, turn, {name: round(one["seconds"], 3) for name, one in found.items()}, flush=True)
            for process in busy:
                process.kill()
                process.wait()
    finally:
        for ended in arms.values():
            ended.end()
        for process in busy:
            process.kill()
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By phase: median seconds of a step of every arm, and `auto` over the better of one and all threads."""
    found: dict[str, Any] = {}
    for phase in PHASES:
        turns = [row["arms"] for row in rows if row["phase"] == phase]
        ratios = [
            turn["auto"]["seconds"] / min(turn["1 thread"]["seconds"], turn["all, sleeping"]["seconds"])
            for turn in turns
        ]
        settled = ratios[len(ratios) // 2 :]
        found[phase] = {
            "seconds_a_step": {name: median(turn[name]["seconds"] for turn in turns) for name in ARMS},
            "cpu_seconds_a_step": {name: median(turn[name]["cpu_seconds"] for turn in turns) for name in ARMS},
            "threads_of_auto": [turn["auto"]["threads"][-1] for turn in turns],
            "auto_over_better": {"median": median(ratios), "second_half": median(settled), "turns": ratios},
            "load": [row["load"] for row in rows if row["phase"] == phase],
        }
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a turn")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arm:
        train_in_turns(arguments.arm, arguments.config)
        return
    rows = measure(arguments.config, arguments.turns, arguments.seconds)
    from interleave import environment

    from llmnas.files import write_json

    made = environment("wall", ("torch", "deepspeed", "numpy"))
    result = {"environment": made, "seconds_a_turn": arguments.seconds, "phases": summary(rows), "rows": rows}
    if arguments.json:
        write_json(arguments.json, result)
    print(json.dumps(result["phases"], indent=1))


if __name__ == "__main__":
    main()
