"""The strategies by name, and how one is started."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

from pydantic import ValidationError

from llmnas.errors import UserError, explain
from llmnas.extras import require_modules
from llmnas.search.strategy import Options, Problem, Strategy


class Entry(NamedTuple):
    """Where a strategy is: its module, in it the names of its options and its class; what it needs beyond the core."""

    module: str
    options: str
    strategy: str
    needs: tuple[str, ...] = ()


STRATEGIES: dict[str, Entry] = {
    "random": Entry("llmnas.search.random", "RandomOptions", "RandomSearch"),
    "evolution": Entry("llmnas.search.evolution", "EvolutionOptions", "RegularizedEvolution"),
    "nsga2": Entry("llmnas.search.nsga2", "Nsga2Options", "Nsga2"),
    "local": Entry("llmnas.search.local", "LocalOptions", "LocalSearch"),
    "bayes": Entry("llmnas.search.bayes", "BayesOptions", "BayesianSearch", ("torch", "botorch", "gpytorch")),
    "reinforce": Entry("llmnas.search.reinforce", "ReinforceOptions", "Reinforce", ("torch",)),
    "ofa": Entry("llmnas.search.ofa", "OfaOptions", "OnceForAll", ("torch", "safetensors")),
    "mip": Entry("llmnas.search.mip_search", "MipOptions", "MipSearch"),
}
"""Name -> where it is. Names, not classes: some strategies need torch, others pymoo, and a search (or a config that
is only checked) must not pay for the ones it does not use. `load_strategy` is the only place that imports them."""


def load_strategy(name: str) -> tuple[type[Options], Callable[[Problem, Any], Strategy]]:
    """(options, constructor) of the strategy of this name.

    Raises:
        UserError: there is none.
    """
    if name not in STRATEGIES:
        raise UserError(f"strategy: {name!r} does not exist; allowed: {', '.join(STRATEGIES)}")
    entry = STRATEGIES[name]
    require_modules(*entry.needs, use=f"strategy {name}")
    module = import_module(entry.module)
    return getattr(module, entry.options), getattr(module, entry.strategy)


def options_of(strategy: str, options: Mapping[str, Any]) -> tuple[Options, Callable[[Problem, Any], Strategy]]:
    """(checked options, constructor) of the strategy of this name.

    Raises:
        UserError: there is no such strategy, it has no such option, or the option no such value.
    """
    kind, make = load_strategy(strategy)
    unknown = sorted(set(options) - set(kind.model_fields))
    if unknown:
        allowed = ", ".join(kind.model_fields) or "none"
        raise UserError(f"options: {strategy} has no {unknown[0]!r}; allowed: {allowed}")
    try:
        return kind.model_validate(dict(options)), make
    except ValidationError as error:
        raise explain(f"options of {strategy}", error) from None


def start_strategy(strategy: str, options: Mapping[str, Any], problem: Problem) -> tuple[Options, Strategy]:
    """(checked options, the strategy of this name before its first `ask`).

    Raises:
        UserError: as `options_of` does; an option that does nothing for this problem; a budget that nothing meets.
    """
    chosen, make = options_of(strategy, options)
    return chosen, make(problem, chosen)
