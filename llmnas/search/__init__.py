"""Search strategies, and the one loop that runs them."""

from llmnas.pareto import Failed
from llmnas.search.evaluating import Evaluate
from llmnas.search.loop import STRATEGIES, load_strategy, options_of, search, start_strategy
from llmnas.search.strategy import Candidates, Options, Problem, Strategy

__all__ = [
    "STRATEGIES",
    "Candidates",
    "Evaluate",
    "Failed",
    "Options",
    "Problem",
    "Strategy",
    "load_strategy",
    "options_of",
    "search",
    "start_strategy",
]
