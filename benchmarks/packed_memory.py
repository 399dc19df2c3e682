"""Memory of a process that decodes: dense fp32 weights, latent fp32 ones read as ternary, and packed ones.

Every figure is of a process of its own that reads the weights from a file, then a prompt, then decodes: resident bytes
of it before the weights, with them, after decoding, and the peak, which loading decides. Beside them the bytes that
the tensors have by their shapes: what the process holds more is the runtime's.

    python benchmarks/packed_memory.py [--out benchmarks/results/packed_memory.csv]
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

import torch
from decode_ternary import SHAPES, decoder, network
from interleave import peak_rss_mib
from tables import line, write_csv

from llmnas.space.architecture import Weights
from llmnas.supernet import Transformer, load_packed, load_weights, pack, save_packed, save_weights

RESULTS = Path(__file__).parent / "results" / "packed_memory.csv"
SHAPE = 2  # of decode_ternary.py: hidden size 1024, 6 layers


def resident_mib() -> float:
    """Resident memory of this process now."""
    for text in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if text.startswith("VmRSS:"):
            return int(text.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmRSS: memory is measured on Linux only")


def write(shape: int, kind: Weights, packed: bool, path: Path) -> None:
    """Weights of one variant."""
    model = network(SHAPES[shape], kind, "mlgru")
    if packed:
        save_packed(pack(model), path)
    else:
        save_weights(model, path)


def read(shape: int, kind: Weights, packed: bool, path: Path) -> Transformer:
    """A network with the weights of the file and nothing else."""
    if packed:
        return load_packed(path)
    return load_weights(network(SHAPES[shape], kind, "mlgru"), path).eval()


def report(shape: int, kind: Weights, packed: bool, path: Path) -> dict[str, float]:
    """What the process of one variant says of itself, MiB."""
    warm = network((64, 1, 64, 1), kind, "mlgru")
    decoder(pack(warm) if packed else warm)()  # libraries and compiled loops are there before anything is counted
    gc.collect()
    before = resident_mib()
    model = read(shape, kind, packed, path)
    gc.collect()
    held = resident_mib()
    decoder(model)()
    tensors = sum(value.nbytes for value in model.state_dict().values()) / 2**20
    figures = {"tensors_mib": tensors, "before_mib": before, "weights_mib": held - before}
    return {**figures, "process_mib": resident_mib(), "peak_mib": peak_rss_mib()}


def row(shape: int, kind: Weights, packed: bool, path: Path) -> dict[str, Any]:
    """One variant, written here and measured in another process."""
    write(shape, kind, packed, path)
    command = [sys.executable, __file__, "--report", str(shape), kind, str(int(packed)), str(path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    hidden, _, _, layers = SHAPES[shape]
    figures = {name: round(value, 1) for name, value in json.loads(said).items()}
    file = round(path.stat().st_size / 2**20, 1)
    return {"hidden_size": hidden, "layers": layers, "weights": kind, "packed": packed, "file_mib": file, **figures}


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, default=SHAPE, help="which of decode_ternary.py's shapes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", nargs=4, metavar=("SHAPE", "KIND", "PACKED", "FILE"), help="measure this process")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.report:
        shape, kind, packed, path = arguments.report
        print(
            json.dumps(report(int(shape), next(k for k in get_args(Weights) if k == kind), packed == "1", Path(path)))
        )
        return
    rows = []
    variants: tuple[tuple[Weights, bool], ...] = (
        ("dense", False), ("ternary", False), ("ternary", True), ("binary", True),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for kind, packed in variants:
            rows.append(row(arguments.shape, kind, packed, Path(folder) / "weights"))
            print(line(rows[-1]), flush=True)
    write_csv(arguments.out, rows)


if __name__ == "__main__":
    main()
