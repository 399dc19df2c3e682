"""The run folder: where every stage finds what the one before it wrote."""

from __future__ import annotations

import errno
import hashlib
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llmnas.errors import UserError
from llmnas.files import read_json, read_yaml, write_json, write_text

Select = Callable[[dict[str, Any]], dict[str, Any]]
_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


@dataclass(frozen=True)
class RunFolder:
    """Typed paths below one folder."""

    path: Path

    @property
    def config(self) -> Path:
        """The config the run was started with."""
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        """When each stage ended, with which versions."""
        return self.path / "manifest.json"

    @property
    def tokenizer(self) -> Path:
        """The trained tokenizer."""
        return self.path / "data" / "tokenizer.json"

    def tokens(self, split: str) -> Path:
        """Token ids of `train` or `validation`."""
        return self.path / "data" / f"{split}.bin"

    def learned(self, split: str) -> Path:
        """Which of these tokens are to be learned from; only with `data.loss_on: completions`."""
        return self.path / "data" / f"{split}-learned.bin"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of supernet training."""
        return self.path / "supernet" / "checkpoints"

    @property
    def initial(self) -> Path:
        """The weights of a pretrained model that the supernet starts from, reordered; the teacher of later stages."""
        return self.path / "supernet" / "initial.safetensors"

    @property
    def pretrained(self) -> Path:
        """The pretrained model before it was trained on the text; only where `train.correction` asks for that."""
        return self.path / "supernet" / "pretrained.safetensors"

    @property
    def supernet(self) -> Path:
        """The trained supernet's weights."""
        return self.path / "supernet" / "model.safetensors"

    @property
    def evaluations(self) -> Path:
        """Every evaluation of the search."""
        return self.path / "evaluations.sqlite"

    @property
    def journals(self) -> Path:
        """What each process of a search has measured, until the search has ended."""
        return self.path / "search"

    @property
    def pareto(self) -> Path:
        """The front of the search."""
        return self.path / "pareto.json"

    @property
    def decision(self) -> Path:
        """Which architecture the search chose, and how sure that is."""
        return self.path / "decision.json"

    def latency_table(self, phase: str) -> Path:
        """Block latencies of this device, `prefill` or `decode`."""
        return self.path / "latency" / f"{phase}.json"

    def latency_correction(self, phase: str, identity: str) -> Path:
        """What whole networks taught the table of a phase; one file for each table, space and number of networks."""
        return self.latency_table(phase).with_name(f"{phase}-correction-{identity}.json")

    @property
    def metrics(self) -> Path:
        """Training curves, a JSON record a line."""
        return self.path / "metrics.jsonl"

    def result(self, stage: str) -> Path:
        """What a stage found: `retrain`, `correlate`, `darts`."""
        return self.path / stage / "result.json"

    def stand_alone(self, stage: str, label: str, seed: int) -> Path:
        """Folder of one network trained alone."""
        return self.path / stage / f"{label}-seed{seed}"

    @property
    def report(self) -> Path:
        """The report of the run."""
        return self.path / "report.html"

    def export(self, arch_id: str) -> Path:
        """The exported checkpoint of an architecture."""
        return self.path / "export" / arch_id

    def require(self, path: Path, verb: str) -> Path:
        """The path, or a `UserError` that names the verb which writes it."""
        if not path.exists():
            raise UserError(f"{path}: not there yet; run `llmnas {verb}` with this run folder first")
        return path

    @property
    def bound(self) -> bool:
        """Whether something was made here: from then on the folder belongs to its config."""
        return self.config.exists() and any(self.tokenizer.parent.glob("*"))

    def claim(self, text: str, values: dict[str, Any], fixed: Select, differ: Any) -> None:
        """Write the config on the first use; later refuse one that differs in what `fixed` selects, and write nothing.

        Raises:
            UserError: another config, or a folder in which nothing can be written.
        """
        if self.bound:
            changed = differ(fixed(read_yaml(self.config)), fixed(values))
            if changed:
                more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
                raise UserError(
                    f"{self.config}: made with another config: {'; '.join(changed[:3])}{more}; use another --run-dir"
                )
            return
        try:
            write_text(self.config, text)
        except OSError as error:
            if error.errno in _FULL:
                raise
            raise UserError(
                f"{self.path}: cannot write there ({error.strerror}); choose a --run-dir that can be written"
            ) from None

    def recorded(self, stage: str) -> dict[str, Any]:
        """What `record` noted of a stage; empty where it has not ended yet."""
        found: dict[str, Any] = self.stages().get(stage, {})
        return found

    def stages(self) -> dict[str, Any]:
        """What the manifest notes of every stage that has ended; empty without one.

        Raises:
            UserError: the manifest is damaged.
        """
        if not self.manifest.exists():
            return {}
        manifest = read_json(self.manifest)
        stages = manifest.get("stages") if isinstance(manifest, dict) else None
        if not isinstance(stages, dict) or not all(isinstance(facts, dict) for facts in stages.values()):
            raise UserError(f"{self.manifest}: damaged (no stages in it); delete it to have it made again")
        return stages

    def record(self, stage: str, **facts: Any) -> None:
        """Note in the manifest that a stage is done."""
        manifest: dict[str, Any] = {"stages": self.stages()}
        manifest["versions"] = {
            "python": platform.python_version(),
            **{name: version(name) for name in ("llmnas", "torch", "deepspeed", "transformers")},
        }
        manifest["stages"][stage] = {"ended": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **facts}
        write_json(self.manifest, manifest)


def identity(*values: Any) -> str:
    """Twelve hex digits that tell apart runs whose artifacts must not mix."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
