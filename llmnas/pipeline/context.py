"""What every stage is given, and the pieces of the run that several stages open."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import ValidationError

from llmnas.config import Config, as_kept, differences
from llmnas.cost import sample
from llmnas.data import (
    Mixture,
    ModelTokenizer,
    Sequences,
    Side,
    TokenFile,
    Tokens,
    read_model_tokenizer,
    require_same_tokenizer,
)
from llmnas.errors import UserError
from llmnas.evaluate.evaluator import Evaluator
from llmnas.evaluate.quality import window_losses
from llmnas.files import read_yaml
from llmnas.pipeline.metrics import OwnMetric, check_metrics
from llmnas.pipeline.run_stores import measured_files, training_files
from llmnas.rng import generator
from llmnas.runs import RunFolder, identity
from llmnas.search import Problem, start_strategy
from llmnas.space import Architecture
from llmnas.supernet import Transformer, load_weights
from llmnas.tracking import Tracker
from llmnas.train.deepspeed_json import deepspeed_config
from llmnas.train.settings import OPERATION, UNMARKED, changed

# what the stored tokens and weights depend on; later stages check their own artifacts
_FIXED = ("seed", "data", "space", "budget", "train", "darts")


def _bound(values: dict[str, Any]) -> dict[str, Any]:
    """What of a config must stay as it was when the folder was first used.

    A key that did not exist yet has the value that it has by default now.
    """
    with contextlib.suppress(ValidationError):  # one that is read no more is compared as it stands
        values = Config.model_validate(values).model_dump(mode="json")
    fixed = {key: values.get(key) for key in _FIXED}
    train = fixed["train"]
    if isinstance(train, dict):
        fixed["train"] = {key: value for key, value in train.items() if key not in OPERATION}
    return fixed


@dataclass(frozen=True)
class Context:
    """A run: its config, its folder, where metrics go, and metrics of the user's own.

    Raises:
        UserError: the search is told to use a metric that does not exist.
    """

    config: Config
    run: RunFolder
    tracker: Tracker
    own_metrics: Mapping[str, OwnMetric] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_metrics(self.config, self.own_metrics)

    def claim(self) -> None:
        """Bind the folder to this config.

        Raises:
            UserError: the folder has another one, with the difference; a file in it is not what was written; nothing in
                the space meets the budget; the search section cannot be run; or the DeepSpeed file or pretrained model
                that it names cannot be read.
        """
        if not self.run.supernet.exists():
            deepspeed_config(self.config.train, processes=1)  # its file is read, long before training
        if not self.run.bound:  # before anything is computed, and before the folder is bound to it
            sample(self.config.space, generator(self.config.seed, "feasible"), self.config.budget)
            self._require_search()
            tokenizer = self.own_tokenizer()
            if self.config.train.init_from and tokenizer is not None:
                from llmnas.pipeline.preflight import preflight  # takes seconds; few runs start from a model

                preflight(Path(self.config.train.init_from), self.config.space, tokenizer)
        elif "tracking" not in read_yaml(self.run.config):
            raise UserError(
                f"{self.run.config}: cut off: llmnas writes a section tracking last, and it is not there; take the "
                "file from a copy of the folder, or another --run-dir"
            )
        self.run.check_results()
        values = self.values
        self.run.claim(yaml.safe_dump(values, sort_keys=False), values, _bound, differences)

    @property
    def values(self) -> dict[str, Any]:
        """The config as plain values, its paths spelt as the folder keeps them: identities depend on these."""
        values = self.config.model_dump(mode="json")
        return as_kept(values, read_yaml(self.run.config)) if self.run.bound else values

    def _require_search(self) -> None:
        """A misspelt option of the strategy must not come to light when the supernet has been trained."""
        config, search = self.config, self.config.search
        goals, limits = dict(search.objectives), dict(search.constraints)
        try:
            problem = Problem.of(config.space, goals, limits, config.budget, config.seed)
            start_strategy(search.strategy, search.options, problem)
        except UserError as error:
            raise UserError(f"search.{error}") from None

    def own_tokenizer(self) -> ModelTokenizer | None:
        """The tokenizer of a pretrained model that the config names, if any.

        Raises:
            UserError: it does not fit the vocabulary, or is another than that of the model that training starts from.
        """
        if self.config.data.tokenizer is None:
            return None
        found = read_model_tokenizer(Path(self.config.data.tokenizer), self.config.space.base.vocab_size)
        if self.config.train.init_from:
            require_same_tokenizer(found, Path(self.config.train.init_from))
        return found

    @property
    def identity(self) -> str:
        """Tells apart runs whose tokens or weights must not mix."""
        values = self.values
        if self.run.bound:  # how the training was run at first stands for how it is run now
            stored = read_yaml(self.run.config).get("train") or {}
            values["train"] |= {key: stored[key] for key in OPERATION if key in stored}
        values["train"] = {key: value for key, value in values["train"].items() if key not in UNMARKED}
        # a section that is not there changes nothing: runs made before it existed go on
        return identity({key: values[key] for key in _FIXED if values[key] is not None})

    def tokens(self, split: str) -> TokenFile:
        """The stored tokens, verified; the training text of several stores one after the other."""
        if split == "train" and self.config.data.tokens:
            return TokenFile.of_several(training_files(self.run)[0])
        path = self.run.require(self.run.tokens(split), "prepare")
        return TokenFile.open(path)

    def sequences(self, seq_len: int, seed: int, *, learned: bool = True) -> Sequences | Mixture:
        """The training tokens in the order of a seed; without `learned` all of them as targets."""
        if len(self.config.data.tokens) > 1:
            files, weights = training_files(self.run)
            return Mixture([Sequences(file.tokens, seq_len, seed, file.info.eos_id) for file in files], weights, seed)
        file = self.tokens("train")
        return Sequences(file.tokens, seq_len, seed, file.info.eos_id, self._learned("train") if learned else None)

    def _learned(self, side: Side) -> Tokens | None:
        """Which of the stored tokens are to be learned from, 1 or 0; None where all are."""
        if self.config.data.loss_on == "all":
            return None
        return TokenFile.open(self.run.require(self.run.learned(side), "prepare")).tokens

    @cached_property
    def document_end(self) -> int | None:
        """The token that attention does not go beyond, in evaluation as in training; None where it may.

        Kept, since opening the tokens reads all of them to verify them, and every loss asks.
        """
        return self.tokens("train").info.eos_id if self.config.train.document_mask else None

    def windows(self, count: int) -> tuple[np.ndarray, float]:
        """(validation windows [at most count, seq + 1], bytes of text a token)."""
        file = self.tokens("validation")
        learned = self._learned("validation")
        windows = Sequences(file.tokens, self.config.train.seq_len, 0, learned=learned).fixed(count)
        return windows, file.info.text_bytes / file.info.tokens

    def named_windows(self, count: int) -> dict[str, np.ndarray]:
        """`windows` of each text that the config names for measuring, at most `count`; nothing where it names one."""
        files = measured_files(self.run)
        seq = self.config.train.seq_len
        return {name: Sequences(file.tokens, seq, 0).fixed(count) for name, file in files.items() if len(files) > 1}

    def loss_windows(self) -> tuple[np.ndarray, float]:
        """`windows` that define the loss: `search.windows` of them.

        Raises:
            UserError: the text has fewer than the config asks for; the default asks for so many at most.
        """
        found, bytes_a_token = self.windows(self.config.search.windows)
        self._require_text("validation", "search.windows", len(found))
        return found, bytes_a_token

    def watched_windows(self) -> np.ndarray:
        """`windows` that training looks at: `train.eval_sequences` of them; raises as `loss_windows` does."""
        found, _ = self.windows(self.config.train.eval_sequences)
        self._require_text("validation", "train.eval_sequences", len(found))
        return found

    def require_windows(self) -> None:
        """Before training: `UserError` where the validation text is too short for `loss_windows`, `watched_windows`."""
        config = self.config
        found, _ = self.windows(max(config.search.windows, config.train.eval_sequences))
        for setting in ("search.windows", "train.eval_sequences"):
            self._require_text("validation", setting, len(found))

    def calibration(self) -> np.ndarray | None:
        """Training text to take a candidate's statistics from, [search.recalibrate, seq + 1]; None where it is off."""
        return self.training_windows("search.recalibrate") if self.config.search.recalibrate else None

    def training_windows(self, setting: str) -> np.ndarray:
        """Training text to look at networks with, always the same, as many sequences as the key of the config says.

        Raises:
            UserError: as `loss_windows` does.
        """
        section, key = setting.split(".")
        count: int = getattr(getattr(self.config, section), key)
        found = Sequences(self.tokens("train").tokens, self.config.train.seq_len, 0).fixed(count)
        self._require_text("train", setting, len(found))
        return found

    def halves(self, setting: str) -> tuple[np.ndarray, np.ndarray]:
        """Two validation texts that share no window: one to choose on, one to report on.

        Each [count, seq + 1], where count is the value of the key of the config, or half of what there is.

        Raises:
            UserError: as `loss_windows` does; or the text has not even two windows.
        """
        section, key = setting.split(".")
        found, _ = self.windows(2 * getattr(getattr(self.config, section), key))
        self._require_text("validation", setting, len(found), halves=2)
        if len(found) < 2:
            raise UserError(
                f"the validation text is one sequence of {self.config.train.seq_len} tokens; two are needed"
            )
        return found[0::2], found[1::2]

    def _require_text(self, side: Side, setting: str, found: int, halves: int = 1) -> None:
        """Refuse a key of the config that asks for more windows than were found, unless it is at its default."""
        section, key = setting.split(".")
        values = getattr(self.config, section)
        asked: int = getattr(values, key)
        if found < halves * asked and key in changed(values):
            more = ", and as many to report on" if halves == 2 else ""
            raise UserError(
                f"{setting} = {asked}{more}: the {side} text has {found} sequences of train.seq_len = "
                f"{self.config.train.seq_len} tokens; ask for at most {found // halves}, or give more text"
            )

    def losses(self, model: Transformer, arch: Architecture | None, windows: np.ndarray) -> np.ndarray:
        """[count] losses of windows, with attention as the supernet was trained with; see `window_losses`."""
        return window_losses(model, arch, windows, eos_id=self.document_end)

    def evaluator(self, device: torch.device | None = None, sample: int | None = None) -> Evaluator:
        """What measures candidates with the trained supernet's weights, as the `search` section says.

        Args:
            sample: windows a candidate is run on instead of `search.sample`.
        """
        search = self.config.search
        windows, bytes_per_token = self.loss_windows()
        model, workload = self.supernet().to(device), self.config.budget.workload
        return Evaluator(
            model, windows, sample or search.sample, bytes_per_token, workload, self.calibration(), self.document_end
        )

    def supernet(self) -> Transformer:
        """The trained supernet."""
        path = self.run.check(self.run.require(self.run.supernet, "train"))
        return load_weights(Transformer(self.config.space), path).eval()
