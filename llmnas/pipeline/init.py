"""Write a config for a corpus, a parameter budget, and a device with a latency.

The rules, also written into the file:
- vocabulary: the largest power of two (512 to 32768) for which there are 1,000 bytes of text an entry and whose
  embedding takes at most 30 % of the budget at the middle width;
- the largest width w, a multiple of 16, whose middle architecture still meets the budget: the middle has
  hidden size w, FFN 3w, and w / 20 layers (at least 3), as small models of today have;
- around that middle, hidden sizes from 0.5 w to 1.5 w, FFN from w to 5w, depth from half to one and a half times:
  the budget lies in the middle of the space;
- training: 20 tokens a parameter of the budget, but at most 4 passes over the text;
- search: loss against parameters, or, where a device or a latency is given, against milliseconds a generated token
  on that device.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmnas.config import load_config
from llmnas.cost import COSTS, count_params
from llmnas.data import open_corpus, split_documents
from llmnas.errors import UserError
from llmnas.files import user_path, write_text
from llmnas.space import SearchSpace

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
_BYTES_AN_ENTRY = 1000
_BYTES_A_TOKEN = 4
_EMBEDDING_SHARE = 0.3
_VALIDATION = 0.1


@dataclass(frozen=True)
class Written:
    """What was chosen, in one line for a person."""

    summary: str


def parse_count(text: str, option: str = "--max-params", of: str = "parameters") -> int:
    """800000, 800k, 1.5M, 2B -> the number; a `UserError` that names the option for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB]?)", text.strip().replace("_", "").replace(",", "").upper())
    count = float(match[1]) * _UNITS[match[2]] if match else 0  # infinite where it has hundreds of digits
    if not 1 <= count <= 10**15:
        raise UserError(f"{option} {text}: must be a number of {of} up to 10^15, for instance 800000, 1.5M or 2B")
    return round(count)


def parse_limit(name: str, text: str) -> float:
    """A limit on a metric as a number; on a cost that is counted also 500k or 1.5M, as `parse_count`."""
    try:
        return float(text)
    except ValueError:
        if name in COSTS:
            return parse_count(text, f"--targets {name}", name)
        raise UserError(f"--targets {name}: {text!r} must be a number, for instance {name}=10,20.5") from None


def space_values(width: int, vocab_size: int, max_seq: int) -> dict[str, Any]:
    """The space around the middle architecture of a width; see the module's rules."""
    head_dim = 32 if width < 512 else 64
    depth = max(3, round(width / 20))
    depths = sorted({max(1, round(depth * f)) for f in (0.5, 0.75, 1, 1.25, 1.5)})
    queries = [1, 2] if width < 512 else [1, 2, 4]
    heads = max(1, round(width / head_dim / 2))  # KV heads at two queries a head
    return {
        "base": {"vocab_size": vocab_size, "tied": True, "max_seq": max_seq},
        "layers": max(depths),
        "hidden_size": sorted({max(16, round(width * f / 16) * 16) for f in (0.5, 0.75, 1, 1.25, 1.5)}),
        "depth": {"choices": depths, "policy": "any"},
        "kv_heads": {"choices": sorted({max(1, heads // 2), heads, heads + max(1, heads // 2)}), "per_layer": True},
        "queries_per_group": {"choices": queries, "per_layer": True},
        "head_dim": head_dim,
        "ffn_size": {"choices": [width * f for f in (1, 2, 3, 4, 5)], "per_layer": True},
    }


def choose_space(max_params: int, vocab_size: int, max_seq: int) -> tuple[int, SearchSpace] | None:
    """(width, space) of the greatest width whose middle meets the budget, None where none does."""
    found = None
    for width in range(16, 16385, 16):
        space = SearchSpace.from_dict(space_values(width, vocab_size, max_seq))
        if count_params(space.middle(), space.base).total > max_params:
            break
        found = (width, space)
    return found


def choose_vocabulary(corpus_bytes: int, max_params: int, max_seq: int) -> tuple[int, int, SearchSpace]:
    """(vocabulary, width, space) by the rules of the module.

    Raises:
        UserError: the budget or the text is too small for the smallest vocabulary.
    """
    if corpus_bytes < 512 * _BYTES_AN_ENTRY // 10:
        raise UserError(
            f"--corpus: {corpus_bytes:,} bytes of text, at least {512 * _BYTES_AN_ENTRY // 10:,} are needed"
        )
    for vocab_size in (1 << power for power in range(15, 8, -1)):
        if vocab_size > 512 and vocab_size * _BYTES_AN_ENTRY > corpus_bytes:
            continue
        chosen = choose_space(max_params, vocab_size, max_seq)
        if chosen and (vocab_size == 512 or vocab_size * chosen[0] <= _EMBEDDING_SHARE * max_params):
            return vocab_size, *chosen
    least = SearchSpace.from_dict(space_values(16, 512, max_seq))
    raise UserError(
        f"--max-params {max_params:,}: too small; the smallest space needs "
        f"{count_params(least.middle(), least.base).total:,}"
    )


def write_config(
    path: Path, corpus: str, max_params: int, *, force: bool, device: str | None = None, latency_ms: float | None = None
) -> Written:
    """Write a commented config that `llmnas run` accepts as it is.

    `device`: of `hardware.device`, where the found network will run; `latency_ms`: at most, a generated token there.

    Raises:
        UserError: the file exists, no text, a single document, or nothing fits the budget.
    """
    if path.exists() and not force:
        raise UserError(f"{path}: exists already; choose another name, or replace it with --force")
    if path.suffix not in {".yaml", ".yml"}:
        raise UserError(f"{path}: a config's name ends in .yaml")
    name = re.sub(r"[^A-Za-z0-9._-]", "-", path.stem)
    if not re.match(r"[A-Za-z0-9_]", name):
        name = f"run-{name.lstrip('.-')}"
    split = split_documents(open_corpus(corpus), _VALIDATION, 0)  # refuses here what `llmnas run` would refuse
    documents, size = sum(split.documents.values()), sum(split.text_bytes.values())
    vocab_size, width, space = choose_vocabulary(size, max_params, 256)
    batch_size, seq_len = 8, 128
    tokens = min(20 * max_params, 4 * size // _BYTES_A_TOKEN)
    steps = max(200, tokens // (batch_size * seq_len))
    values = space_values(width, vocab_size, space.base.max_seq)
    search = _search(device, latency_ms)
    source = corpus
    if corpus not in {"sotu", "stdlib"} and not user_path(corpus).is_absolute() and path.resolve().parent != Path.cwd():
        source = os.path.relpath(corpus, path.parent)  # relative to the config, as it will be read
    write_text(path, _render(name, source, values, max_params, steps, batch_size, seq_len, size, width, search))
    config = load_config(path, [])
    least, most = (count_params(arch, space.base).total for arch in (space.smallest(), space.largest()))
    return Written(
        f"{documents:,} documents, {size:,} bytes; vocabulary {vocab_size:,}; "
        f"{config.space.size():.1e} architectures of {least:,} to {most:,} parameters; {steps:,} steps"
    )


def _render(
    name: str,
    source: str,
    space: dict[str, Any],
    max_params: int,
    steps: int,
    batch: int,
    seq: int,
    size: int,
    width: int,
    search: str,
) -> str:
    base = ", ".join(f"{key}: {str(value).lower()}" for key, value in space["base"].items())
    return f"""\
# Written by `llmnas init`; every line may be changed. Start: llmnas run {name}.yaml
name: {name}
seed: 0

data:
  source: {_quoted(source)}
  validation: {_VALIDATION}        # share of the text held out, whole documents

# What an architecture may be. The middle of these choices (hidden size {width}) just meets the budget.
space:
  base: {{{base}}}    # the text has {size:,} bytes
  layers: {space["layers"]}             # of the supernet; an architecture keeps any of them
  hidden_size: {space["hidden_size"]}
  depth: {{choices: {space["depth"]["choices"]}, policy: any}}
  kv_heads: {{choices: {space["kv_heads"]["choices"]}, per_layer: true}}
  queries_per_group: {{choices: {space["queries_per_group"]["choices"]}, per_layer: true}}
  head_dim: {space["head_dim"]}
  ffn_size: {{choices: {space["ffn_size"]["choices"]}, per_layer: true}}

budget:
  max_params: {max_params}

# The supernet: 20 tokens a parameter of the budget, at most 4 passes over the text.
train:
  steps: {steps}
  batch_size: {batch}
  seq_len: {seq}
  lr: 0.002              # the first knob to try: 0.001, 0.004
  sampler: {{kind: single, largest: budget}}    # which networks are trained; all keys: docs/entanglement.md

{search}

# The best one is trained alone, beside a hand-designed network of the same size.
retrain:
  train: {{steps: {steps}}}
  seeds: 3               # fewer than 2 cannot tell a difference from noise
  hand_designed: [smollm2]
"""


def _search(device: str | None, latency_ms: float | None) -> str:
    timed = device is not None or latency_ms is not None
    lines = [
        "search:",
        "  strategy: nsga2",
        f"  objectives: {{val_loss: min, {'decode_latency_ms' if timed else 'params'}: min}}",
        "  evaluations: 200",
    ]
    if latency_ms is not None:
        lines.append(f"  constraints: {{decode_latency_ms: {latency_ms:g}}}    # milliseconds a generated token")
    if device not in {None, "this"}:
        lines += ["", "# Where the found network will run; its latency is an estimate: docs/latency.md.", "hardware:"]
        lines.append(f"  device: {device}")
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """A YAML string that means exactly this text."""
    return "'" + text.replace("'", "''") + "'"
