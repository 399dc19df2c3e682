"""A small search and its training records."""

import numpy as np

from llmnas.pareto import Evaluation, front
from llmnas.space import SearchSpace

SPACE = SearchSpace.from_dict(
    {
        "base": {"vocab_size": 64},
        "layers": 4,
        "hidden_size": [32, 64],
        "depth": [2, 3, 4],
        "kv_heads": [1, 2],
        "queries_per_group": 2,
        "head_dim": 8,
        "ffn_size": {"choices": [32, 64], "per_layer": True},
    }
)
TWO = {"val_loss": "min", "params": "min"}
RECORDS = [
    {"stage": "supernet", "step": step, "time": 1.0, "train_loss": 6.0 - step / 100, "lr": 0.01} for step in (10, 20)
] + [{"stage": "supernet", "step": 20, "val_loss_smallest": 6.1, "val_loss_largest": 5.9, "val_loss_random": 6.0}]


def evaluation(index, failure=None, **metrics):
    return Evaluation(SPACE.sample(np.random.default_rng(index)), metrics, failure, index)


EVALUATIONS = [evaluation(i, val_loss=5.9 - i / 20 + (7 * i % 10) / 20, params=1000.0 + 100 * i) for i in range(10)]
FRONT = front(EVALUATIONS, TWO)  # evaluations 0, 3, 6 and 9
