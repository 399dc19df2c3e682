"""Search strategies, and the one loop that runs them."""

from llmnas.search.loop import STRATEGIES, Evaluate, search
from llmnas.search.strategy import Candidates, Options, Problem, Strategy

__all__ = ["STRATEGIES", "Candidates", "Evaluate", "Options", "Problem", "Strategy", "search"]
