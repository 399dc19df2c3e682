"""Search strategies, and the one loop that runs them."""

from llmnas.pareto import Failed
from llmnas.search.dialogue import Trial
from llmnas.search.evaluating import Evaluate
from llmnas.search.loop import search
from llmnas.search.session import Measured, Search
from llmnas.search.strategies import STRATEGIES, load_strategy, options_of, start_strategy
from llmnas.search.strategy import Candidates, Options, Problem, Strategy

__all__ = [
    "STRATEGIES",
    "Candidates",
    "Evaluate",
    "Failed",
    "Measured",
    "Options",
    "Problem",
    "Search",
    "Strategy",
    "Trial",
    "load_strategy",
    "options_of",
    "search",
    "start_strategy",
]
