"""From weights on choices to one architecture: the likeliest one that the space and the budget admit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from llmnas.cost import Budget, BudgetSampler
from llmnas.rng import generator
from llmnas.space import DIMENSIONS, Architecture, LayerSpec, SearchSpace
from llmnas.space.space import even_subset
from llmnas.supernet.mixture import choices_of, free_layers, rows_of

_STARTS, _FINALISTS, _CHECKS = 64, 4, 20_000
Picks = tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """Every decision of a space, row by row.

    Attributes:
        places: (decision, row) in the order of `Picks`.
        scores: log weight of every choice, one array a place.
    """

    space: SearchSpace
    places: tuple[tuple[str, int], ...]
    scores: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, space: SearchSpace, weights: Mapping[str, Tensor]) -> Table:
        """`weights` are those of `mixture.weights_of`."""
        names = ("hidden_size", "depth", *DIMENSIONS)
        places = tuple((name, row) for name in names for row in range(rows_of(space, name)))
        rows = [weights[name][row].detach().double().cpu().numpy() for name, row in places]
        return cls(space, places, tuple(np.log(row.clip(1e-300)) for row in rows))

    def likeliest(self) -> Picks:
        """The best choice of every decision by itself."""
        return tuple(int(score.argmax()) for score in self.scores)

    def score(self, picks: Picks) -> float:
        """Log probability of all picks together."""
        return float(sum(score[pick] for score, pick in zip(self.scores, picks, strict=True)))

    def architecture(self, picks: Picks) -> Architecture | None:
        """What the picks describe; None where the space has no such member."""
        space = self.space
        value = {place: choices_of(space, place[0])[pick] for place, pick in zip(self.places, picks, strict=True)}
        free = free_layers(space)
        keep = set(range(space.layers)) - {i for row, i in enumerate(free) if not value["depth", row]}
        if space.depth.policy == "even":
            keep = set(even_subset(space.layers, value["depth", 0]))
        if not keep or not space.allows(tuple(sorted(keep))):
            return None
        layers = {
            i: LayerSpec(**{name: value[name, i if name in space.layer_dimensions else 0] for name in DIMENSIONS})
            for i in keep
        }
        return space.build(value["hidden_size", 0], layers)

    def picks(self, arch: Architecture) -> Picks:
        """The picks that give `arch`; what makes no difference to it takes its likeliest choice."""
        space, free, found = self.space, free_layers(self.space), []
        for (name, row), score in zip(self.places, self.scores, strict=True):
            choices, values = choices_of(space, name), []
            if name == "hidden_size":
                values = [arch.hidden_size]
            elif name == "depth" and rows_of(space, name):
                values = [arch.depth if space.depth.policy == "even" else arch.layers[free[row]] is not None]
            elif name != "depth":
                layers = [arch.layers[row]] if name in space.layer_dimensions else list(arch.layers)
                values = [getattr(spec, name) for spec in layers if spec and spec.uses(name)]
            found.append(choices.index(values[0]) if values else int(score.argmax()))
        return tuple(found)

    def better(self, picks: Picks, changes: int) -> Iterator[Picks]:
        """What differs from `picks` in one decision (or up to two) and is likelier, the likeliest first."""
        moves = [
            (place, choice, float(score[choice] - score[picks[place]]))
            for place, score in enumerate(self.scores)
            for choice in range(len(score))
            if choice != picks[place]
        ]
        ways = [(gain, [(place, choice)]) for place, choice, gain in moves if gain > 0]
        if changes == 2:
            ways += [
                (a + b, [(i, x), (j, y)])
                for k, (i, x, a) in enumerate(moves)
                for j, y, b in moves[k + 1 :]
                if i != j and a + b > 0
            ]
        for _, changed in sorted(ways, key=lambda way: -way[0])[:_CHECKS]:
            new = list(picks)
            for place, choice in changed:
                new[place] = choice
            yield tuple(new)


def decode(space: SearchSpace, weights: Mapping[str, Tensor], budget: Budget | None, seed: int = 0) -> Architecture:
    """The architecture with the greatest product of weights within the space and the budget.

    Exact where the likeliest choices are admitted together. Else steepest ascent from members within the budget: by
    single decisions from many, then by pairs (one pays for the other) from the best; a local optimum over pairs.

    Args:
        weights: of `mixture.weights_of`.
        seed: of the members to start from.

    Raises:
        UserError: nothing of the space is within the budget.
    """
    table, budget = Table.of(space, weights), budget or Budget()

    def admitted(picks: Picks) -> bool:
        arch = table.architecture(picks)
        return arch is not None and budget.admits(space.base, arch)

    def climb(picks: Picks, changes: int) -> Picks:
        while (step := next((new for new in table.better(picks, changes) if admitted(new)), None)) is not None:
            picks = step
        return picks

    best = table.likeliest()
    if not admitted(best):
        drawn = BudgetSampler(space, budget).sample_many(generator(seed, "decode"), _STARTS)
        ends = {climb(table.picks(arch), 1) for arch in drawn}
        finalists = sorted(ends, key=lambda picks: (-table.score(picks), picks))[:_FINALISTS]
        best = max((climb(picks, 2) for picks in finalists), key=lambda picks: (table.score(picks), picks))
    found = table.architecture(best)
    assert found is not None  # `admitted` has built it
    return found


def free_share(arch: Architecture) -> float:
    """Share of the supernet's sub-blocks (mixer and feed-forward of every layer) that became parameter-free:
    both of a skipped layer, the mixer of one without."""
    free = sum(2 if spec is None else spec.mixer == "none" for spec in arch.layers)
    return free / (2 * len(arch.layers))
