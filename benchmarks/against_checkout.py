"""Is this code as fast as that of another checkout? Child processes of both in turn, CPU time of one thread.

    python benchmarks/against_checkout.py ../before --repeats 10

Each child warms up, then times the same networks: training steps of the largest network, of random sub-networks, of
low-bit ones and of experts, and generated tokens of a stand-alone one. A ratio is of two children that ran next to each
other; 1 is as fast, less is faster than the other checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

SIZES: dict[str, Any] = {
    "base": {"vocab_size": 512, "max_seq": 128}, "layers": 4, "hidden_size": [64, 128], "depth": [2, 3, 4],
    "kv_heads": {"choices": [1, 2], "per_layer": True}, "queries_per_group": {"choices": [1, 2], "per_layer": True},
    "head_dim": {"choices": [16, 32], "per_layer": True}, "ffn_size": {"choices": [128, 256, 384], "per_layer": True},
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "largest": {},
    "sub-networks": {},
    "ternary": {"weights": "ternary"},
    "experts": {"experts": [1, 2, 4], "top_k": [1, 2]},
    "stand-alone, a token": {},
}


def child(steps: int) -> None:
    """CPU milliseconds of a step of every kind, as JSON."""
    import numpy as np
    import torch

    from llmnas import SearchSpace
    from llmnas.supernet import Transformer, extract

    torch.set_num_threads(1)
    found = {}
    for kind, more in KINDS.items():
        space = SearchSpace.from_dict(SIZES | more)
        model, rng = Transformer(space), np.random.default_rng(0)
        tokens = torch.randint(512, (4, 129), generator=torch.Generator().manual_seed(0))
        archs = [space.largest() if kind == "largest" else space.sample(rng) for _ in range(steps + 2)]
        alone = extract(model, archs[0]) if "token" in kind else None
        for i, arch in enumerate(archs):
            if i == 2:
                begin = time.process_time()
            if alone is None:
                model(tokens[:, :-1], arch, targets=tokens[:, 1:]).loss.backward()
                continue
            with torch.no_grad():
                cache = alone.new_cache(alone.envelope, 1, 32)
                for t in range(32):
                    alone(tokens[:1, t : t + 1], cache=cache)
        found[kind] = (time.process_time() - begin) / steps / (32 if alone else 1) * 1e3
    print(json.dumps(found))


def measured(root: Path, steps: int) -> dict[str, float]:
    """One child of a checkout."""
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(root), "--child", str(steps)]
    out = subprocess.run(command, env=env, capture_output=True, text=True, check=True, cwd=root).stdout
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


def main() -> None:
    """Alternate, print the ratios, write the JSON."""
    parser = argparse.ArgumentParser(description="speed against another checkout")
    parser.add_argument("other", type=Path)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "against_checkout.json")
    parser.add_argument("--child", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    roots = {"this": Path(__file__).resolve().parents[1], "other": args.other.resolve()}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in roots}
    for i in range(args.repeats):
        for name in list(roots) if i % 2 else reversed(roots):
            times[name].append(measured(roots[name], args.steps))
    report: dict[str, Any] = {"clock": "cpu", "threads": 1, "repeats": args.repeats, "steps": args.steps, "kinds": {}}
    for kind in KINDS:
        ratios = sorted(a[kind] / b[kind] for a, b in zip(times["this"], times["other"], strict=True))
        report["kinds"][kind] = {
            "this_ms": median(one[kind] for one in times["this"]),
            "other_ms": median(one[kind] for one in times["other"]),
            "ratio": {
                "median": median(ratios), "low": ratios[len(ratios) // 4], "high": ratios[3 * len(ratios) // 4],
            },
        }  # fmt: skip
        print(kind, json.dumps(report["kinds"][kind]))
    args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
