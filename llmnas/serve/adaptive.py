"""Keeping a target latency under changing load: decoding moves along a ladder of sub-networks of shared weights.

Where the cache cannot go on with the next sub-network (another width, or a layer that comes back), the text is read
again by it: that one token takes as long as a prompt, and patience makes it rare.
Shapes: B texts, T tokens of the text so far, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmnas.export.modeling_llmnas import LlmnasForCausalLM
from llmnas.export.subnetworks import Limits, Subnetwork, cost
from llmnas.space import Architecture

Clock = Callable[[], float]
Draw = Callable[[Tensor], Tensor]
_LONGEST_PATIENCE = 16  # times the patience that the settings name


@dataclass(frozen=True)
class Settings:
    """How a controller moves.

    Attributes:
        memory: tokens that the average of the load looks back; the newest one weighs 1 / memory.
        headroom: share of the target that a larger sub-network must leave free before it is taken.
        patience: tokens in a row with that headroom before a step up.
    """

    memory: float = 16.0
    headroom: float = 0.1
    patience: int = 16

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if not self.memory >= 1 or not 0 <= self.headroom < 1 or self.patience < 1:
            raise ValueError(f"{self}: memory and patience must be at least 1, headroom within [0, 1)")


class Controller:
    """Which rung of a ladder keeps the target at the present load.

    The load is an exponential average of measured over tabled milliseconds, so one rung's times predict every
    other's: tabled ms x load. Down, as far as needed, as soon as the prediction exceeds the target; up by one rung
    after `patience` tokens with headroom. A step up that is taken back within that time doubles the patience, at most
    16-fold, so that a table which is wrong about one rung does not make it swing; one that lasts restores it.

    Args:
        ms: tabled milliseconds a token, ascending.
        target_ms: to be kept.
        settings: how to move.

    Raises:
        ValueError: no rung, times that do not ascend, or a target that is no positive number.
    """

    def __init__(self, ms: Sequence[float], target_ms: float, settings: Settings | None = None) -> None:
        if not ms or ms[0] <= 0 or any(a >= b for a, b in itertools.pairwise(ms)):
            raise ValueError(f"ladder: times must be positive and ascend, got {list(ms)}")
        if not 0 < target_ms < math.inf:
            raise ValueError(f"target_ms = {target_ms!r} must be a positive number")
        self.ms = tuple(ms)
        self.target_ms = target_ms
        self.settings = settings or Settings()
        self.load = 1.0
        self.rung = self._largest_within()
        self._patience = self.settings.patience
        self._calm = 0  # tokens in a row with headroom for the next rung
        self._since_up: int | None = None  # tokens since a step up that may still be taken back

    def observe(self, measured_ms: float) -> int:
        """Take in what a token on the present rung took; returns the rung of the next token."""
        self.load += (measured_ms / self.ms[self.rung] - self.load) / self.settings.memory
        if self._since_up is not None:
            self._since_up += 1
            if self._since_up > self._patience:
                self._patience, self._since_up = self.settings.patience, None
        if self.rung and self.predicted_ms(self.rung) > self.target_ms:
            self._step_down()
        else:
            self._step_up_when_calm()
        return self.rung

    def predicted_ms(self, rung: int) -> float:
        """Milliseconds a token at the present load."""
        return self.ms[rung] * self.load

    def _largest_within(self) -> int:
        return max((i for i in range(len(self.ms)) if self.predicted_ms(i) <= self.target_ms), default=0)

    def _step_down(self) -> None:
        self.rung = self._largest_within()
        if self._since_up is not None:
            self._patience = min(2 * self._patience, _LONGEST_PATIENCE * self.settings.patience)
        self._calm, self._since_up = 0, None

    def _step_up_when_calm(self) -> None:
        most = (1 - self.settings.headroom) * self.target_ms
        above = self.rung + 1
        self._calm = self._calm + 1 if above < len(self.ms) and self.predicted_ms(above) <= most else 0
        if self._calm >= self._patience:
            self.rung, self._calm, self._since_up = above, 0, 0


def ladder(table: Sequence[Subnetwork], ms: Mapping[str, float], limits: Limits) -> list[Subnetwork]:
    """Sub-networks worth moving along, fastest first: each slower one has a lower validation loss.

    Args:
        table: all of them.
        ms: milliseconds by id.
        limits: what each must keep besides; `latency_ms` is the controller's and bounds nothing here.
    """
    bounds = {name: most for name, most in limits.items() if name != "latency_ms"}
    fit = [one for one in table if all(cost(one, name, ms) <= most for name, most in bounds.items())]
    rungs: list[Subnetwork] = []
    for one in sorted(fit, key=lambda one: (ms[one.id], one.metrics["val_loss"])):
        if not rungs or (one.metrics["val_loss"] < rungs[-1].metrics["val_loss"] and ms[one.id] > ms[rungs[-1].id]):
            rungs.append(one)
    return rungs


@dataclass
class Trace:
    """What every token that was added took.

    Attributes:
        rungs: which sub-network scored it.
        ms: how long.
        read_again: places of tokens for which the whole text was read again; the prompt's own reading is none.
    """

    rungs: list[int] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    read_again: list[int] = field(default_factory=list)

    @property
    def changes(self) -> int:
        """Tokens scored by another sub-network than the one before."""
        return sum(a != b for a, b in zip(self.rungs, self.rungs[1:], strict=False))


def draw(temperature: float, seed: int) -> Draw:
    """Logits [B, V] to the next tokens [B, 1]: the likeliest at temperature 0, else drawn from softmax(logits / T)."""
    if not temperature:
        return lambda logits: logits.argmax(-1, keepdim=True)
    generator = torch.Generator().manual_seed(seed)
    return lambda logits: torch.multinomial((logits.float() / temperature).softmax(-1).cpu(), 1, generator=generator)


@torch.inference_mode()
def generate(
    model: LlmnasForCausalLM,
    ids: Tensor,
    archs: Sequence[Architecture],
    controller: Controller,
    *,
    tokens: int,
    next_token: Draw,
    attention_mask: Tensor | None = None,
    clock: Clock = time.perf_counter,
) -> tuple[Tensor, Trace]:
    """Go on with texts, every token by the sub-network that the controller names.

    The controller lives on from text to text. Tokens before which the text was read as a whole do not count for its
    load: the table holds none of that.

    Args:
        model: the weights.
        ids: [B, T], T at least 1.
        archs: the rungs of the controller's ladder.
        controller: told about every token.
        tokens: to add at most; it ends sooner when every text has ended. A text that has ended is filled up with
            `generation_config.pad_token_id`, else with the token that ended it.
        next_token: chooses by the logits, see `draw`.
        attention_mask: [B, T], 0 at padding on the left; None where there is none.
        clock: seconds that have passed, for a user: what other programs take counts.

    Returns:
        the texts [B, T + added], and what happened.
    """
    text, mask, trace, cache = ids, attention_mask, Trace(), None
    ends, padding = _ends(model, ids.device)
    ended = torch.zeros(len(ids), 1, dtype=torch.bool, device=ids.device)
    for place in range(tokens):
        rung = controller.rung
        began = clock()
        whole = cache is None or cache.refusal(archs[rung]) is not None
        out = model(
            text if whole else text[:, -1:], attention_mask=mask, arch=archs[rung], cache=None if whole else cache,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        chosen, cache = next_token(out.logits[:, -1]).to(text.device), out.cache
        chosen = torch.where(ended, text[:, -1:] if padding is None else padding, chosen)
        ended = ended | torch.isin(chosen, ends)
        text = torch.cat([text, chosen], dim=1)
        mask = None if mask is None else torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        end = bool(ended.all())  # waits for the device
        trace.rungs.append(rung)
        trace.ms.append(1e3 * (clock() - began))
        if not whole:
            controller.observe(trace.ms[-1])
        elif place:
            trace.read_again.append(place)
        if end:
            break
    return text, trace


def _ends(model: LlmnasForCausalLM, device: torch.device) -> tuple[Tensor, int | None]:
    """The tokens that end a text, [at least 0], and the one that fills up."""
    settings = model.generation_config
    ends = settings.eos_token_id
    listed = [] if ends is None else ends if isinstance(ends, list) else [ends]
    return torch.tensor(listed, dtype=torch.long, device=device), settings.pad_token_id
