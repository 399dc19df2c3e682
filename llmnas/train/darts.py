"""Differentiable search: one loop that trains a supernet's weights and alpha in turn (DARTS, Liu et al. 2019).

Weights are trained through DeepSpeed as everywhere. Alpha's gradient needs what DeepSpeed has no place for: weights
moved away and put back, and gradients that no optimizer sees. It is taken on the module itself, which is sound only
where every weight is whole in this process: ZeRO stage 0, one process. Others are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llmnas.cost import Budget
from llmnas.data.halves import Half
from llmnas.errors import Preempted, UserError
from llmnas.rng import torch_seed
from llmnas.space import Architecture, SearchSpace
from llmnas.supernet import Transformer
from llmnas.supernet.mixture import Mixture, soften, weights_of
from llmnas.train.alphas import AlphaTraining
from llmnas.train.checkpoint import Checkpoints, newest
from llmnas.train.darts_settings import DartsSettings
from llmnas.train.decode import decode, free_share
from llmnas.train.divergence import Divergence
from llmnas.train.engine import Engine, Step
from llmnas.train.health import Meter, Skips
from llmnas.train.hypergradient import first_order, second_order
from llmnas.train.preemption import Preemption
from llmnas.train.processes import Processes
from llmnas.train.recovery import Recovery, kept
from llmnas.train.rehearsal import Rehearsal
from llmnas.train.relaxed_cost import ExpectedParams, budget_penalty
from llmnas.train.schedule import learning_rate, weight_decay
from llmnas.train.settings import TrainSettings, changed
from llmnas.train.spectrum import dominant_eigenvalue
from llmnas.train.threads import Threads
from llmnas.train.trainer import Log

_UNUSED = (
    "init_from",
    "update",
    "sampler",
    "distill",
    "moe",
    "shared_batch",
    "document_mask",
    "micro_batch",
    "checkpoint_blocks",
)


@dataclass(frozen=True)
class Measurement:
    """One point of the trace: steps done, the dominant eigenvalue, what alpha decoded to."""

    step: int
    eigenvalue: float
    arch: Architecture


@dataclass(frozen=True)
class Relaxed:
    """What a differentiable search found.

    Attributes:
        arch: the decoded architecture.
        weights: softmax(alpha) of every decision.
        trace: every measurement.
        stopped: the measurement that early stopping went back to, None where it did not stop.
        tokens: that trained weights.
        seconds: of this start.
    """

    arch: Architecture
    weights: Mapping[str, list[list[float]]]
    trace: tuple[Measurement, ...]
    stopped: Measurement | None
    tokens: int
    seconds: float


def require_usable(settings: TrainSettings, budget: Budget, darts: DartsSettings, processes: int) -> None:
    """Refuse what differentiable search cannot do, or would ignore."""
    if processes > 1:
        raise UserError(f"--method darts runs in one process, not {processes}: alpha's gradient moves whole weights")
    if settings.zero_stage:
        raise UserError(
            f"train.zero_stage = {settings.zero_stage}: --method darts needs stage 0 "
            "(alpha's gradient moves whole weights)"
        )
    if settings.on_divergence == "rewind":
        raise UserError("train.on_divergence: rewind is not for --method darts; take warn or stop")
    for name in _UNUSED:
        if getattr(settings, name) != TrainSettings.model_fields[name].get_default(call_default_factory=True):
            raise UserError(
                f"train.{name} does nothing with --method darts (a step trains all networks as one mixture)"
            )
    limited = budget.max_params is not None or budget.min_params is not None
    if "penalty" in changed(darts) and not limited:
        raise UserError("darts.penalty does nothing without budget.max_params or budget.min_params")
    if darts.alpha_from >= settings.steps:
        raise UserError(f"darts.alpha_from = {darts.alpha_from}: alpha would never move in {settings.steps} steps")


class Search:
    """The two steps of the method on one model: alpha's and the weights'."""

    def __init__(
        self, model: Transformer, space: SearchSpace, budget: Budget, data: tuple[Half, Half],
        settings: TrainSettings, darts: DartsSettings, processes: Processes, seed: int,
    ) -> None:  # fmt: skip
        self.space, self.budget, self.settings, self.darts = space, budget, settings, darts
        self.mixture = Mixture(model)
        self.engine = Engine(self.mixture, settings, processes)
        self.alphas = AlphaTraining(space, darts, torch_seed(seed, "alpha"), self.engine.device)
        self._parameters = list(self.mixture.parameters())
        self._weight_data, self._alpha_data = data
        self._expected = ExpectedParams(space)
        if darts.trace_every and self.engine.device.type == "cuda" and "mlgru" in space.mixer.choices:
            raise UserError("darts.trace_every: the MLGRU kernel has no second derivative on a GPU; set it to 0")

    def _batch(self, half: Half, first: int, count: int) -> tuple[Tensor, Tensor]:
        batch = torch.from_numpy(half.batch(first, count)).to(self.engine.device)
        return batch[:, :-1], batch[:, 1:]

    def _loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        soft = soften(self.space, self.alphas.values, self.mixture.supernet)
        loss: Tensor = self.mixture(batch[0], soft, targets=batch[1]).loss
        return loss

    def expected_params(self) -> Tensor:
        """Scalar: the mean parameter count under the present weights of the choices."""
        return self._expected(weights_of(self.space, self.alphas.values))

    def alpha_step(self, step: int) -> dict[str, float]:
        """One update of alpha on its own half of the data; its loss and the norm of its gradient."""
        size = self.settings.batch_size
        batch = self._batch(self._alpha_data, step * size, size)
        seen: list[Tensor] = []

        def val_loss() -> Tensor:
            loss = self._loss(batch)
            seen.append(loss.detach())
            penalty = self.darts.penalty * budget_penalty(self.expected_params(), self.budget)
            return loss + penalty.to(loss.dtype)

        if self.darts.order == "first":
            gradients = first_order(val_loss, self.alphas.parameters())
        else:
            train_batch = self._batch(self._weight_data, step * size, size)
            xi = self.darts.xi or learning_rate(step, self.settings)
            gradients = second_order(
                lambda: self._loss(train_batch), val_loss, self._parameters, self.alphas.parameters(), xi
            )
        return {"alpha_loss": float(seen[0]), "alpha_grad_norm": self.alphas.step(gradients)}

    def weight_step(self, step: int, engine: Engine | Rehearsal | None = None) -> tuple[Tensor, Step]:
        """One update of the weights under the present mixture; its cross entropy ([1], detached) and what it did."""
        engine = engine or self.engine
        size = self.settings.batch_size
        tokens, targets = self._batch(self._weight_data, step * size, size)
        with torch.no_grad():
            soft = soften(self.space, self.alphas.values, self.mixture.supernet)
        out = engine.forward(tokens, soft, targets=targets)
        engine.backward(out.loss)
        result = engine.step(learning_rate(step, self.settings), weight_decay(step, self.settings))
        return out.cross_entropy.reshape(1), result

    def rehearse(self, step: int) -> None:
        """The work of `weight_step`, which leaves no trace."""
        self.weight_step(step, Rehearsal(self.engine))

    def measure(self) -> float:
        """Measure the dominant eigenvalue of alpha's Hessian of the loss on alpha's half, and note it."""
        batch = self._batch(self._alpha_data, 0, self.darts.trace_sequences)
        eigenvalue = dominant_eigenvalue(lambda: self._loss(batch), self.alphas.parameters())
        self.alphas.measured(eigenvalue)
        return eigenvalue

    def decoded(self, measurement: int | None = None) -> Architecture:
        """The architecture that alpha means, now or at a measurement."""
        return decode(self.space, self.alphas.weights(measurement), self.budget)

    def outcome(self, meter: Meter) -> Relaxed:
        """What was found."""
        every = self.darts.trace_every
        before = self.darts.alpha_from // every if every else 0
        trace = tuple(
            Measurement((before + i + 1) * every, value, self.decoded(i))
            for i, value in enumerate(self.alphas.eigenvalues)
        )
        stopped = self.alphas.stopped
        return Relaxed(
            arch=self.decoded(),
            weights={name: weight.tolist() for name, weight in self.alphas.weights().items()},
            trace=trace,
            stopped=None if stopped is None else trace[stopped],
            tokens=self.settings.steps * self.settings.batch_size * self.settings.seq_len,
            seconds=meter.seconds(),
        )


def search_relaxed(
    search: Search,
    *,
    folder: Path | None = None,
    identity: str = "",
    log: Log | None = None,
    evaluate: Callable[[Architecture], dict[str, float]] | None = None,
) -> Relaxed:
    """Train weights and alpha, from the newest checkpoint in `folder` where there is one.

    Args:
        search: the model (trained in place), its data, its settings.
        folder: where checkpoints go; None keeps none.
        identity: of this run, so that a checkpoint of another one is refused.
        log: called with (steps done, metrics).
        evaluate: metrics of the architecture that alpha means, every `eval_every` steps, logged.

    Raises:
        RunError: too many steps in a row without a finite gradient.
        Preempted: SIGTERM came; a checkpoint of the step boundary is in `folder`.
    """
    engine, alphas, settings, darts = search.engine, search.alphas, search.settings, search.darts
    watch, skips = Divergence(settings, search.space.base.vocab_size), Skips(settings, folder)
    checkpoints = Checkpoints(engine, folder, kept(settings), identity, {"sampler": alphas, "loss": watch})
    first = checkpoints.restore()
    recovery = Recovery(settings, engine, checkpoints, folder, watch, skips)
    threads = Threads(settings, engine, folder, search.rehearse)
    if first < settings.steps:
        threads.start(first)
    meter = Meter(engine, settings)
    say: Log = log or (lambda *_: None)
    with Preemption() as preemption:
        for step in range(first, settings.steps):
            if preemption.requested:
                if not skips.in_a_row:
                    checkpoints.save(step)
                raise Preempted(f"SIGTERM at step {step}: {newest(folder)}; start again with --resume")
            if threads.changed(step) and not skips.in_a_row:
                checkpoints.save(step)
                threads.look(step)
            moves = step >= darts.alpha_from and alphas.stopped is None
            with threads.of(step):
                found = search.alpha_step(step) if moves else {}
                losses, result = search.weight_step(step)
            means = engine.means(losses)
            recovery.look(step, means, result)
            meter.add(1)
            done, last = step + 1, step + 1 == settings.steps
            if moves and darts.trace_every and done % darts.trace_every == 0:
                with meter.paused():
                    found["alpha_eigenvalue"] = search.measure()
            if done % settings.log_every == 0 or last or "alpha_eigenvalue" in found:
                found["expected_params"] = float(search.expected_params().detach())
                rate = learning_rate(step, settings)
                say(done, {**meter.read(rate, means, result, skips.total), **_finite(found)})
            if evaluate and (done % settings.eval_every == 0 or last):
                with engine.evaluation(), meter.paused():
                    arch = search.decoded()
                    say(done, {**evaluate(arch), "parameter_free_share": free_share(arch)})
            if (done % settings.save_every == 0 or last) and not skips.in_a_row:
                checkpoints.save(done)
        skips.end()
        engine.release()
    if preemption.requested:
        raise Preempted(f"SIGTERM after the last step: {newest(folder)}; start again with --resume")
    return search.outcome(meter)


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if abs(value) < float("inf")}
