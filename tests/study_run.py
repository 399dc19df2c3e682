"""A whole study on a few hundred made-up sentences: seconds, with everything that a long one has."""

import numpy as np

from llmnas.config import Config
from llmnas.pipeline.context import Context
from llmnas.pipeline.prepare import prepare
from llmnas.pipeline.search import search_supernet
from llmnas.pipeline.train import train_supernet
from llmnas.runs import RunFolder
from llmnas.tracking import Tracker

VALUES = {
    "name": "study",
    "space": {
        "base": {"vocab_size": 270, "max_seq": 16},
        "layers": 2,
        "hidden_size": [16, 20, 24, 28, 32],
        "depth": {"choices": [1, 2], "policy": "even"},
        "kv_heads": 1,
        "queries_per_group": [1, 2],
        "head_dim": 8,
        "ffn_size": {"choices": [8, 12, 16, 20, 24, 28, 32, 36, 40], "per_layer": True},
    },
    "budget": {"min_params": 8000, "max_params": 14000},
    "train": {"steps": 4, "batch_size": 2, "seq_len": 16, "threads": 1, "sampler": {"anchor_every": 0}},
    "search": {"strategy": "evolution", "objectives": {"val_loss": "min"}, "evaluations": 6, "windows": 8, "sample": 4},
    "correlate": {
        "architectures": 3,
        "params": 11000,
        "band": 0.2,
        "seeds": 2,
        "train": {"steps": 2},
        "adapt": {"steps": 1},
    },
    "retrain": {
        "train": {"steps": 3},
        "seeds": 2,
        "hand_designed": ["qwen3"],
        "lr_grid": [0.001, 0.01],
        "random_baseline": 3,
    },
    "tracking": {"wandb": "off"},
}


def changed(**sections):
    """The values with some keys of some sections replaced."""
    return {**VALUES, **{name: {**VALUES[name], **keys} for name, keys in sections.items()}}


def opened(folder, values):
    """The context of a run folder, claimed as the command line does it."""
    config = Config.model_validate(values)
    context = Context(config, RunFolder(folder), Tracker(folder, "off", "test", {}))
    context.claim()
    return context


def searched(folder, corpus, **sections):
    """A run whose search is done."""
    rng = np.random.default_rng(0)
    words = ["peace", "union", "state", "law", "people", "nation", "year", "great"]
    corpus.mkdir(exist_ok=True)
    for i in range(12):
        (corpus / f"{i}.txt").write_text(" ".join(rng.choice(words, 200)), encoding="utf-8")
    context = opened(folder, {**changed(**sections), "data": {"source": str(corpus), "validation": 0.3}})
    prepare(context)
    train_supernet(context)
    search_supernet(context).close()
    return context
