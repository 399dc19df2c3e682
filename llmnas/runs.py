"""The run folder: where every stage finds what the one before it wrote."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmnas.errors import UserError
from llmnas.files import Written, inside, read_yaml, sha256, write_text
from llmnas.manifest import Ledger

_LOG = logging.getLogger(__name__)
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
        """When each stage ended, with which versions, and the hash of every file."""
        return self.path / "manifest.json"

    @property
    def tokenizer(self) -> Path:
        """The trained tokenizer."""
        return self.path / "data" / "tokenizer.json"

    def tokens(self, split: str) -> Path:
        """Token ids of `train` or `validation`."""
        return self.path / "data" / f"{split}.bin"

    @property
    def stores(self) -> Path:
        """Which token stores the run reads, and what they were; only with `data.tokens`."""
        return self.path / "data" / "stores.json"

    def has_tokens(self, split: str) -> bool:
        """Whether the tokens of a side lie in this folder, whole: what describes them is written last."""
        return self.tokens(split).with_suffix(".json").is_file()

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

    @property
    def ledger(self) -> Ledger:
        """What is noted of stages and files."""
        return Ledger(self.manifest)

    def stages(self) -> dict[str, Any]:
        """What the manifest notes of every stage that has ended; empty without one.

        Raises:
            UserError: the manifest is damaged.
        """
        return self.ledger.stages()

    def record(self, stage: str, **facts: Any) -> None:
        """Note in the manifest that a stage is done."""
        self.ledger.ended(stage, facts)

    def seal(self, written: Written) -> None:
        """Note a file of this folder that is about to get its name; what `hashed_open` and its like are given."""
        self.ledger.seal(written)

    def check(self, path: Path) -> Path:
        """The path, if its file is what was written (or nothing is known of it); to be asked before its first use.

        Raises:
            UserError: another size or content.
        """
        return self.ledger.check(path)

    def check_results(self) -> None:
        """`check` everything but weights, which are checked where they are loaded; `UserError` as there.

        A run made before files were noted has one hash, its tokenizer's; that the others cannot be checked is said.
        """
        noted, tokenizer = self.ledger.files(), self.recorded("prepare").get("tokenizer_sha256")
        if noted is None:
            _LOG.warning("%s: made before files had hashes: what is damaged there may pass unnoticed", self.path)
        for name in noted or {}:
            if not name.endswith(".safetensors"):
                self.check(inside(self.path, name))
        if tokenizer is not None and self.tokenizer.exists() and sha256(self.tokenizer) != tokenizer:
            raise UserError(
                f"{self.tokenizer}: damaged: not the tokenizer that the text was prepared with (SHA-256 differs); "
                "delete data/ and run prepare again"
            )

    def seal_evaluations(self) -> None:
        """Note the archive of the search, when it is closed and not noted; `unseal_evaluations` before it changes."""
        path, noted = self.evaluations, self.ledger.files()
        unwritten = path.with_name(f"{path.name}-wal")  # of a connection that is still open, here or elsewhere
        if path.exists() and not unwritten.exists() and noted is not None and path.name not in noted:
            self.seal(Written(path, path.stat().st_size, sha256(path)))

    def unseal_evaluations(self) -> None:
        """Drop what is noted of the archive, which is going to change."""
        self.ledger.forget(self.evaluations)


def identity(*values: Any) -> str:
    """Twelve hex digits that tell apart runs whose artifacts must not mix."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
