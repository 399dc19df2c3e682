"""Search strategies, and the one loop that runs them."""

from llmnas.search.loop import STRATEGIES, Evaluate, load_strategy, options_of, search, start_strategy
from llmnas.search.strategy import Candidates, Options, Problem, Strategy

__all__ = [
    "STRATEGIES",
    "Candidates",
    "Evaluate",
    "Options",
    "Problem",
    "Strategy",
    "load_strategy",
    "options_of",
    "search",
    "start_strategy",
]
