"""MnasNet's search (Tan et al. 2019): a controller writes architectures decision by decision and learns from rewards.

Shapes: B architectures at once, P decisions of a code, V values of a decision, H hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from llmnas.errors import UserError
from llmnas.pareto import Evaluation, violations
from llmnas.rng import torch_seed
from llmnas.search.partial import Decisions, Walk
from llmnas.search.strategy import Candidates, Options, Problem
from llmnas.space import Architecture

_HIDDEN = 48
_CONSTRAINT = 8.0
"""Exponent of a missed constraint."""
_LARGEST = 50.0
_TRIES = 6
"""So many batches are drawn from the controller in search of new architectures."""

EXPONENTS = {"soft": (-0.07, -0.07), "hard": (0.0, -1.0)}
"""(alpha, beta) of the paper."""


class ReinforceOptions(Options):
    """Options of `reinforce`.

    Attributes:
        quality: the objective whose goodness is ACC; None for `val_loss`, or the first where there is none.
        logarithmic: quality is a logarithm of what counts, so ACC = exp(quality): right for a loss in nats, for which
            ACC is then the (geometric) mean probability of the next token. False where it is an accuracy itself.
        targets: T of other objectives (costs); None for the median of the first `start` evaluations.
        exponents: `soft` (-0.07, -0.07): both sides of T are traded; `hard` (0, -1): only what is above T loses.
        start: evaluations of the untrained controller before the first update.
        learning_rate: of Adam.
        epochs: passes of PPO over each batch; 1 is REINFORCE.
        clip: PPO's bound on the ratio of probabilities; with one epoch the ratio is 1.
        entropy: weight of the entropy bonus.
    """

    quality: str | None = None
    logarithmic: bool = True
    targets: dict[str, float] = Field({})
    exponents: Literal["soft", "hard"] = "soft"
    start: int = Field(16, ge=2)
    learning_rate: float = Field(0.02, gt=0)
    epochs: int = Field(8, ge=1)
    clip: float = Field(0.2, gt=0, lt=1)
    entropy: float = Field(0.003, ge=0)


def log_reward(log_quality: float, costs: Mapping[str, float], targets: Mapping[str, float], exponents: str) -> float:
    """log(ACC x prod_c (c / T_c)^w), w = alpha where c <= T_c, else beta (equation 2 of the paper, a factor a cost).

    Raises:
        UserError: a cost or target that is not positive.
    """
    alpha, beta = EXPONENTS[exponents]
    total = log_quality
    for name, target in targets.items():
        cost = costs[name]
        if cost <= 0 or target <= 0:
            raise UserError(f"reinforce: {name} = {cost} with target {target}: the reward needs positive numbers")
        total += (alpha if cost <= target else beta) * math.log(cost / target)
    return total


class Controller(nn.Module):
    """A GRU over decisions: reads the value chosen last, gives logits for the next.

    Every position has its own embedding of values and its own output layer, rows of tensors that are as wide as the
    widest decision. Drawing goes position by position, all architectures of a batch at once; scoring knows what was
    drawn, so it runs the whole sequence in one call and all output layers in one product.
    """

    def __init__(self, values: Sequence[int], seed: int) -> None:
        super().__init__()
        self.values = list(values)
        most = max(values)
        self.gru = nn.GRU(_HIDDEN, _HIDDEN, batch_first=True)
        self.begin = nn.Parameter(torch.empty(_HIDDEN))
        self.embed = nn.Parameter(torch.empty(len(values), most, _HIDDEN))
        self.heads = nn.Parameter(torch.empty(len(values), most, _HIDDEN))
        self.biases = nn.Parameter(torch.empty(len(values), most))
        generator = torch.Generator().manual_seed(torch_seed(seed, "controller"))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-0.1, 0.1, generator=generator)

    def sample(self, decisions: Decisions, count: int, rng: np.random.Generator) -> tuple[Tensor, list[Tensor]]:
        """Draw `count` codes [B, P] and the masks [B, V] under which each decision was made."""
        walks = [Walk(decisions) for _ in range(count)]
        columns, masks = [], []
        state, read = torch.zeros(count, _HIDDEN), self.begin.expand(count, -1)
        of_input, of_state, bias_input, bias_state = map(
            self.gru.get_parameter, ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        )
        with torch.no_grad():
            for position, width in enumerate(self.values):
                state = torch.gru_cell(read, state, of_input, of_state, bias_input, bias_state)
                logits = nn.functional.linear(state, self.heads[position, :width], self.biases[position, :width])
                mask = np.stack([walk.allowed() for walk in walks])
                drawn = _drawn(logits.double().numpy(), mask, rng)
                for walk, value in zip(walks, drawn.tolist(), strict=True):
                    walk.write(value)
                masks.append(torch.from_numpy(mask))
                columns.append(torch.from_numpy(drawn))
                read = self.embed[position][columns[-1]]
        return torch.stack(columns, dim=1), masks

    def score(self, codes: Tensor, masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probability [B] of codes [B, P], and the mean entropy [B] of the decisions that were open."""
        count, positions = codes.shape
        allowed = torch.zeros(count, positions, self.heads.shape[1], dtype=torch.bool)
        for position, mask in enumerate(masks):
            allowed[:, position, : mask.shape[1]] = mask
        before = self.embed[torch.arange(positions - 1), codes[:, :-1]]
        states, _ = self.gru(torch.cat([self.begin.expand(count, 1, -1), before], dim=1))
        logits = torch.einsum("bph,pvh->bpv", states, self.heads) + self.biases
        logs = logits.masked_fill(~allowed, -1e9).log_softmax(-1)
        log_probability = logs.gather(2, codes[:, :, None])[:, :, 0].sum(1)
        entropy = -(logs.exp() * logs).sum((1, 2))
        open_ = (allowed.sum(-1) > 1).sum(1)
        return log_probability, entropy / open_.clamp_min(1)


def _drawn(logits: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One value [B] of each row by its logits [B, V], of those that the mask [B, V] allows."""
    allowed = np.where(mask, logits, -np.inf)
    weights = np.exp(allowed - allowed.max(1, keepdims=True))
    drawn = (weights.cumsum(1) < rng.random((len(weights), 1)) * weights.sum(1, keepdims=True)).sum(1)
    drawn = np.minimum(drawn, mask.shape[1] - 1)
    # rounding must not choose what the mask forbids
    values: np.ndarray = np.where(mask[np.arange(len(mask)), drawn], drawn, weights.argmax(1))
    return values


class Reinforce:
    """Maximises the expected reward ACC x (LAT / T)^w of what the controller draws.

    Policy gradient with a moving baseline, PPO's clipped ratio (the paper's; one epoch is REINFORCE) and an
    entropy bonus. What cannot end within the budget is masked at every decision. A constraint that
    is missed by a share v of its bound leaves (1 + v)^-8 of the least reward that meets all of them; a failed
    evaluation has reward 0. An architecture that is drawn again is not measured again: its reward is known and
    counts in the update.

    One reward is one trade-off: it looks for the best network near the targets, not for a whole front.
    """

    def __init__(self, problem: Problem, options: ReinforceOptions) -> None:
        self._problem = problem
        self._options = options
        goals = problem.objectives
        first = "val_loss" if "val_loss" in goals else next(iter(goals))
        self._quality = options.quality or first
        if self._quality not in goals:
            raise UserError(f"options of reinforce: quality: {self._quality!r} is no objective; allowed: {list(goals)}")
        self._costs = [name for name in goals if name != self._quality]
        for name, target in options.targets.items():
            if name not in self._costs or target <= 0:
                raise UserError(
                    f"options of reinforce: targets: {name}: {target} must be a positive target of another "
                    f"objective than {self._quality}; allowed: {self._costs}"
                )
        options.require_use("exponents", bool(self._costs), "without a second objective to trade")
        options.require_use("clip", options.epochs > 1, "with one epoch, in which no probability has moved yet")
        self._targets = {name: 1 / at if goals[name] == "max" else at for name, at in options.targets.items()}
        self._candidates = Candidates(problem)
        self._decisions = Decisions(problem.space, problem.budget)
        self._controller = Controller(self._decisions.values, problem.seed)
        self._adam = torch.optim.Adam(self._controller.parameters(), lr=options.learning_rate)
        self._known: dict[Architecture, Evaluation] = {}
        self._drawn: list[tuple[Architecture, Tensor, list[Tensor]]] = []
        self._baseline: float | None = None
        self._unit: float | None = None  # log of the reward that counts as 1: a factor changes no advantage

    def ask(self, n: int) -> list[Architecture]:
        """New architectures that the controller writes; random ones where it writes nothing new."""
        new: list[Architecture] = []
        for _ in range(_TRIES):
            codes, masks = self._controller.sample(self._decisions, n, self._candidates.rng)
            for i, code in enumerate(codes):
                arch = self._decisions.build(code.tolist())
                if not self._candidates.admits(arch):  # several limits at once: see `Decisions`
                    continue
                if arch in self._known or len(new) < n:
                    self._drawn.append((arch, code, [mask[i] for mask in masks]))
                    new += self._candidates.unseen([arch], 1)
                    self._candidates.hand_out([arch])
            if len(new) == n:
                return new
        return new + self._candidates.new(n - len(new), self._candidates.sample)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Update the controller with every draw since the last update."""
        self._known |= {evaluation.arch: evaluation for evaluation in evaluations}
        if len(self._known) < self._options.start:
            return
        self._choose_targets()
        logs = self._log_rewards()
        if self._unit is None:
            self._unit = float(np.median([value for value in logs.values() if math.isfinite(value)] or [0.0]))
        rewards = {arch: math.exp(min(value - self._unit, _LARGEST)) for arch, value in logs.items()}
        drawn = [draw for draw in self._drawn if draw[0] in rewards]
        self._drawn = []
        if drawn:
            spread = float(np.std(list(rewards.values())))
            self._update(drawn, np.array([rewards[arch] for arch, _, _ in drawn]), spread or 1.0)

    def _log_rewards(self) -> dict[Architecture, float]:
        """Of all that was told; what misses a constraint is worth less than all that meets them."""
        logs, missed = {}, {}
        for arch, evaluation in self._known.items():
            logs[arch] = self._log_reward(evaluation)
            far = violations(evaluation.metrics, self._problem.constraints) if evaluation.failure is None else []
            if any(far):
                missed[arch] = sum(math.log1p(share) for share in far)
        least = min((v for arch, v in logs.items() if arch not in missed and math.isfinite(v)), default=0.0)
        return logs | {arch: least - _CONSTRAINT * share for arch, share in missed.items()}

    def _choose_targets(self) -> None:
        """Where no target was given: the median of what was told first."""
        for name in self._costs:
            if name not in self._targets:
                told = [self._cost(e, name) for e in self._known.values() if e.failure is None]
                if told:
                    self._targets[name] = float(np.median(told))

    def _cost(self, evaluation: Evaluation, name: str) -> float:
        """A cost that is to be small; one that is to be great counts as its inverse."""
        value = evaluation.metrics[name]
        if self._problem.objectives[name] == "min":
            return value
        if value <= 0:
            raise UserError(f"reinforce: {name} = {value}: the reward needs positive numbers")
        return 1 / value

    def _log_reward(self, evaluation: Evaluation) -> float:
        if evaluation.failure is not None:
            return -math.inf
        value = evaluation.metrics[self._quality]
        goodness = value if self._problem.objectives[self._quality] == "max" else -value
        if not self._options.logarithmic:
            if goodness <= 0:
                raise UserError(f"reinforce: {self._quality} = {value}: with logarithmic: false it must be positive")
            goodness = math.log(goodness)
        costs = {name: self._cost(evaluation, name) for name in self._targets}
        return log_reward(goodness, costs, self._targets, self._options.exponents)

    def _update(
        self, drawn: list[tuple[Architecture, Tensor, list[Tensor]]], rewards: np.ndarray, spread: float
    ) -> None:
        """Some epochs of clipped policy gradient on draws and their rewards [B]."""
        options = self._options
        codes = torch.stack([code for _, code, _ in drawn])
        masks = [torch.stack(rows) for rows in zip(*(rows for _, _, rows in drawn), strict=True)]
        mean = float(rewards.mean())
        self._baseline = mean if self._baseline is None else 0.8 * self._baseline + 0.2 * mean
        advantage = torch.tensor((rewards - self._baseline) / spread, dtype=torch.float32)
        before: Tensor | None = None
        for _ in range(options.epochs):
            log_probability, entropy = self._controller.score(codes, masks)
            before = log_probability.detach() if before is None else before  # nothing has moved yet
            ratio = torch.exp(log_probability - before)
            clipped = ratio.clamp(1 - options.clip, 1 + options.clip)
            gain = torch.minimum(ratio * advantage, clipped * advantage)
            loss = -(gain + options.entropy * entropy).mean()
            self._adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._adam.step()
