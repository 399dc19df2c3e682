"""The knobs of differentiable search (no torch: a config is checked before anything heavy is loaded)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from llmnas.train.settings import Strict, changed


class DartsSettings(Strict):
    """Differentiable search: weights and alpha (the logits of every choice) trained in turn (Liu et al. 2019).

    Attributes:
        order: `first` takes the weights for optimal; `second` looks through one step of gradient descent on them
            (4 more passes a step, 2 copies of the weights).
        xi: size of that inner step; None is the learning rate of the moment.
        alpha_lr: of Adam on alpha (betas 0.5, 0.999, as the authors have it).
        alpha_decay: L2 regularisation of alpha.
        alpha_from: the first step that moves alpha; before it only weights are trained.
        share: of the training sequences that alpha is trained on, and weights never.
        penalty: weight of the logarithm by which the expected parameter count misses the budget.
        only: restricted choice sets: a decision (`hidden_size`, `depth`, a dimension of a layer) and the choices of the
            space that are left to it. `depth` as in the space: only the full depth means no skips.
        trace_every: steps between measurements of alpha's dominant eigenvalue; 0 measures none.
        trace_sequences: of alpha's data, always the same, that it is measured on.
        early_stop: alpha goes back to where the smoothed eigenvalue began to grow by more than 1 / 0.75, and stays
            there; weights are trained to the last step (Zela et al. 2020).
        window: measurements that the eigenvalue is smoothed over, and compared across.
    """

    order: Literal["first", "second"] = "first"
    xi: PositiveFloat | None = None
    alpha_lr: PositiveFloat = 3e-3
    alpha_decay: NonNegativeFloat = 1e-3
    alpha_from: NonNegativeInt = 0
    share: float = Field(0.5, gt=0, lt=1)
    penalty: NonNegativeFloat = 1.0
    only: dict[str, tuple[int | str, ...]] = Field(default_factory=dict)
    trace_every: NonNegativeInt = 0
    trace_sequences: PositiveInt = 8
    early_stop: bool = False
    window: PositiveInt = 5

    @model_validator(mode="after")
    def _nothing_is_idle(self) -> Self:
        if self.xi is not None and self.order == "first":
            raise ValueError("xi does nothing with order: first (which is xi = 0); set order: second or leave it out")
        if self.early_stop and not self.trace_every:
            raise ValueError("early_stop watches the eigenvalue: set trace_every above 0")
        idle = sorted(changed(self) & {"trace_sequences", "window"})
        if idle and not self.trace_every:
            raise ValueError(f"{idle[0]} does nothing with trace_every: 0")
        if "window" in idle and not self.early_stop:
            raise ValueError("window does nothing without early_stop")
        return self
