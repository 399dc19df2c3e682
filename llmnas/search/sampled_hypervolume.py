"""Expected improvement of a noisy hypervolume by samples: what `acquisition: qlognehvi` of `bayes` asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from botorch.acquisition.multi_objective import logei
from botorch.acquisition.multi_objective.objective import IdentityMCMultiOutputObjective
from botorch.models.model import Model
from botorch.sampling import SobolQMCNormalSampler
from torch import Tensor

# BoTorch would compile a kernel for it: a process killed meanwhile leaves a lock, on which all later ones wait for ever
logei._load_attempted = True

_SAMPLES = 16


def noisy_improvement(
    model: Model,
    reference: Tensor,
    told: Sequence[int],
    bounds: Mapping[int, tuple[float, float]],
    pending: Sequence[int],
    seed: int,
) -> Callable[[Tensor], Tensor]:
    """qLogNEHVI (Daulton et al. 2021; Ament et al. 2023) over positions of a finite pool.

    The front that is improved upon is itself uncertain: its members' values are drawn with those of the candidates.

    Args:
        model: its first outputs are the objectives, greater is better; those of `bounds` are constrained metrics.
        reference: [m], of the hypervolume.
        told: positions of the best that were evaluated.
        bounds: (low, high) by output, infinite where there is none.
        pending: positions chosen before, and not evaluated yet.
        seed: of the samples.
    """

    def positions(of: Sequence[int]) -> Tensor:
        return torch.tensor(of, dtype=torch.float64)[:, None]

    return logei.qLogNoisyExpectedHypervolumeImprovement(  # type: ignore[no-any-return]
        model,
        ref_point=reference,
        X_baseline=positions(told),
        sampler=SobolQMCNormalSampler(torch.Size([_SAMPLES]), seed=seed),
        objective=IdentityMCMultiOutputObjective(outcomes=list(range(len(reference)))),
        constraints=_outside(bounds) or None,
        X_pending=positions(pending) if pending else None,
        cache_root=False,
    )


def _outside(bounds: Mapping[int, tuple[float, float]]) -> list[Callable[[Tensor], Tensor]]:
    """Every finite bound as a function of samples [..., outputs] that is negative where it holds."""

    def below(k: int, high: float) -> Callable[[Tensor], Tensor]:
        return lambda samples: samples[..., k] - high

    def above(k: int, low: float) -> Callable[[Tensor], Tensor]:
        return lambda samples: low - samples[..., k]

    found = [below(k, high) for k, (_, high) in bounds.items() if np.isfinite(high)]
    return found + [above(k, low) for k, (low, _) in bounds.items() if np.isfinite(low)]
