"""The English model of the package `glassllm`: real weights small enough for tests, and real text in its tokens."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from glassllm.tokenizer import Tokenizer

from llmnas.data import read_corpus
from llmnas.space import SearchSpace
from llmnas.supernet import Transformer

WEIGHTS = Path(find_spec("glassllm").submodule_search_locations[0]) / "weights"
SMALL = {
    "base": {"vocab_size": 1024, "norm_eps": 1e-6, "max_seq": 128},
    "layers": 4,
    "hidden_size": [64, 96, 128],
    "depth": [3, 4],
    "kv_heads": [1, 2],
    "queries_per_group": [1, 2],
    "head_dim": 32,
    "ffn_size": [170, 256, 341],
}


def glass():
    """The English model of the package: real weights, 852,608 parameters, and its tokenizer."""
    model = Transformer(SearchSpace.from_dict(SMALL))
    with np.load(WEIGHTS / "en.npz") as stored:
        own = {name: torch.from_numpy(stored[name].astype(np.float32)) for name in stored.files if name[0] != "_"}
    state = {"embedding.weight": own["E"], "norm": own["norm_f.gamma"]}
    for i in range(4):
        w = {name.removeprefix(f"blocks.{i}."): value for name, value in own.items() if f"blocks.{i}." in name}
        state |= {
            f"layers.{i}.{name}": value
            for name, value in {
                "mixer_norm": w["norm1.gamma"],
                "ffn_norm": w["norm2.gamma"],
                "attention.q.weight": w["attn.W_Q"].T,
                "attention.k.weight": w["attn.W_K"].T,
                "attention.v.weight": w["attn.W_V"].T,
                "attention.o.weight": w["attn.W_O"].T,
                "ffn.gate.weight": w["ffn.W1"].T,
                "ffn.up.weight": w["ffn.W3"].T,
                "ffn.down.weight": w["ffn.W2"].T,
            }.items()
        }
    model.load_state_dict(state)
    assert sum(p.numel() for p in model.parameters()) == 852_608
    return model.eval()


def speech():
    """A speech in the model's own tokens: [8, 129] each."""

    tokenizer = Tokenizer.load(WEIGHTS / "en.tokenizer.json")
    ids = np.array(tokenizer.encode(read_corpus("sotu")[100].text[:60_000]))
    windows = torch.from_numpy(ids[: len(ids) // 129 * 129].reshape(-1, 129))
    return [windows[i : i + 8] for i in range(0, 64, 8)]
