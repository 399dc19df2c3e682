"""What the loop watches: steps whose gradients were not finite, speed, memory."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from llmnas.errors import RunError
from llmnas.train.checkpoint import newest
from llmnas.train.engine import Engine, Step
from llmnas.train.settings import TrainSettings


class Skips:
    """Counts skipped updates. All ranks skip the same ones, so all stop together.

    Attributes:
        total: skipped steps of this start.
        in_a_row: of them, those since the last update; nothing is saved while it is not 0.
    """

    def __init__(self, settings: TrainSettings, folder: Path | None) -> None:
        self.total = self.in_a_row = 0
        self._settings, self._folder = settings, folder
        self._step = 0

    @property
    def exhausted(self) -> bool:
        """Whether `skip_limit` steps in a row were skipped."""
        return self.in_a_row >= self._settings.skip_limit

    def count(self, step: int, result: Step, *, patient: bool = False) -> None:
        """Note the outcome of the step with number `step` (from 1).

        Raises:
            RunError: `exhausted`; not where the caller is `patient` and does something about it.
        """
        self._step = step
        self.in_a_row = 0 if result.applied else self.in_a_row + 1
        self.total += not result.applied
        if self.exhausted and not patient:
            self.end()

    def end(self) -> None:
        """`RunError` where the newest steps were skipped: their weights are not worth keeping."""
        if self.in_a_row:
            raise RunError(
                f"step {self._step}: no finite gradient in the last {self.in_a_row} steps (train.skip_limit = "
                f"{self._settings.skip_limit}): {newest(self._folder)}; lower train.lr (now {self._settings.lr}) in "
                "another --run-dir"
            )


class Meter:
    """Tokens a second since the last reading, without the time of evaluations."""

    def __init__(self, engine: Engine, settings: TrainSettings) -> None:
        self._engine, self._settings = engine, settings
        self._started = self._since = time.perf_counter()
        self._tokens = self.tokens_per_step = 0

    def add(self, networks: int) -> None:
        """One more step, of so many networks."""
        self.tokens_per_step = networks * self._settings.batch_size * self._settings.seq_len
        self._tokens += self.tokens_per_step

    def read(self, lr: float, means: Tensor, result: Step, skipped: int) -> dict[str, float]:
        """Metrics of the step.

        Args:
            lr: its learning rate.
            means: [networks] cross entropy, in nats a token, means over processes, in the order of the sampler.
            result: what the optimizer did.
            skipped: updates skipped since the start.

        Returns:
            A loss or gradient norm that is not finite is left out; `skipped_steps` says that there was one.
        """
        losses = means.tolist()
        now = time.perf_counter()
        found = {
            "lr": lr,
            "tokens_per_second": self._tokens / (now - self._since),
            "peak_memory_bytes": float(peak_memory(self._engine.device)),
            "skipped_steps": float(skipped),
        }
        self._since, self._tokens = now, 0
        if result.applied:
            found |= {"train_loss": sum(losses) / len(losses), "grad_norm": result.grad_norm}
            if len(losses) > 1:
                found |= {f"cross_entropy_{i}": loss for i, loss in enumerate(losses)}
        return found

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count as training."""
        begun = time.perf_counter()
        yield
        self._since += time.perf_counter() - begun

    def seconds(self) -> float:
        """Since the start, evaluations and checkpoints included."""
        return time.perf_counter() - self._started


def peak_memory(device: torch.device) -> int:
    """Most bytes this process has held so far: on its GPU, or resident in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
