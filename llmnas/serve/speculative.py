"""Which sub-network drafts best for the whole network that shares its weights.

Shapes: R texts, P tokens of a prompt, N generated tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from llmnas.cost.speculation import Plan, plan
from llmnas.space import Architecture
from llmnas.supernet import Transformer

Clock = Callable[[], float]


class Drafting:
    """Texts that the whole network generated, and what its passes cost: all that a draft is judged by.

    Args:
        model: the supernet.
        prompts: [R, P] int64.
        new_tokens: N, generated greedily after every prompt.
        longest: proposals of a round at most.
        clock: seconds; the processor time of a single thread leaves out what other programs take.
    """

    def __init__(
        self, model: Transformer, prompts: Tensor, new_tokens: int, longest: int, clock: Clock = time.process_time
    ) -> None:
        self.model = model
        self.full = model.envelope
        self.clock = clock
        self.prompt = prompts.shape[1]
        self.texts = greedy(model, self.full, prompts, new_tokens)
        self.check_ms = [self.pass_ms(self.full, count) for count in range(1, longest + 2)]

    @torch.no_grad()
    def agreement(self, draft: Architecture) -> list[np.ndarray]:
        """[N] bool for each text: where the draft would choose the whole network's token."""
        logits = self.model(self.texts[:, :-1], draft)[:, self.prompt - 1 :]
        same: np.ndarray = (logits.argmax(-1) == self.texts[:, self.prompt :]).numpy()
        return list(same)

    def plan(self, draft: Architecture) -> Plan:
        """How this draft is used best."""
        return plan(self.agreement(draft), self.pass_ms(draft, 1), self.check_ms)

    @torch.no_grad()
    def pass_ms(self, arch: Architecture, tokens: int, repeats: int = 15) -> float:
        """Milliseconds of reading `tokens` tokens of one text behind a prompt: the lower quartile of the repeats."""
        text = self.texts[:1]
        cache = self.model.new_cache(arch, 1, self.prompt + tokens)
        self.model(text[:, : self.prompt], arch, cache=cache)
        start, times = cache.mark(), []
        for _ in range(repeats):
            begin = self.clock()
            self.model(text[:, self.prompt : self.prompt + tokens], arch, cache=cache)
            times.append(self.clock() - begin)
            cache.back_to(start)
        return 1e3 * float(np.quantile(times, 0.25))


@torch.no_grad()
def greedy(model: Transformer, arch: Architecture, prompts: Tensor, new_tokens: int) -> Tensor:
    """Prompts [R, P] with N likeliest tokens after them, [R, P + N]."""
    cache = model.new_cache(arch, len(prompts), prompts.shape[1] + new_tokens)
    texts, read = prompts, prompts
    for _ in range(new_tokens):
        read = model(read, arch, cache=cache)[:, -1:].argmax(-1)
        texts = torch.cat([texts, read], dim=1)
    return texts
