"""A tiny training run, and a program that does it and can be killed: train_script.py FOLDER [STEP TO DIE AFTER]."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np

from llmnas.data import Sequences
from llmnas.space import SearchSpace
from llmnas.supernet import Transformer, save_weights
from llmnas.train.engine import start_processes
from llmnas.train.sampling import SupernetSampler
from llmnas.train.settings import TrainSettings
from llmnas.train.trainer import train

SPACE = SearchSpace.from_dict(
    {
        "base": {"vocab_size": 64, "qk_norm": True, "qkv_bias": True},
        "layers": 4,
        "hidden_size": [32, 48],
        "depth": [1, 2, 4],
        "kv_heads": {"choices": [1, 2], "per_layer": True},
        "queries_per_group": [1, 2],
        "head_dim": {"choices": [4, 8], "per_layer": True},
        "ffn_size": {"choices": [16, 32, 64], "per_layer": True},
    }
)
# products: some tokens are frequent, many never occur, 0 (the end of a document) is the most frequent
TOKENS = np.prod(np.random.default_rng(0).integers(0, 8, (2, 4000)), axis=0).astype(np.uint16)
SEQUENCES = Sequences(TOKENS, 16, seed=0)
SETTINGS = TrainSettings(steps=12, batch_size=4, seq_len=16, lr=1e-2, log_every=1, save_every=3, threads=1)


def run(folder, settings=SETTINGS, identity="a", **callbacks):
    """Train with checkpoints in `folder`; the model."""
    model = Transformer(SPACE, seed=0)
    sampler = SupernetSampler(SPACE, None, settings.sampler, seed=0)
    train(model, sampler, SEQUENCES, settings, start_processes(), folder=folder, identity=identity, **callbacks)
    return model


def main(folder, die_after=0):
    # one write a line: whatever a kill leaves is whole lines
    stream = os.open(folder / "log.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def log(step, metrics):
        os.write(stream, (json.dumps([step, metrics["train_loss"].hex(), metrics["lr"].hex()]) + "\n").encode())
        if step == die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = SETTINGS if die_after else SETTINGS.model_copy(update={"save_every": 1})
    save_weights(run(folder / "checkpoints", settings, log=log), folder / "weights.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
