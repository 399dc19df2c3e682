"""Small random models of transformers' own classes, as folders."""

import json

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmnas.space import FixedShape
from llmnas.supernet import Transformer
from llmnas.train.warmstart import check_pretrained, read_pretrained

SIZES = {
    "vocab_size": 60, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip


def stock(folder, family="llama", **changes):
    """A model whose norms and biases do something, saved."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "bias" in name and "o_proj" not in name:
                parameter.normal_()
            elif "embed" not in name:
                parameter.mul_(5)  # far enough from nothing that every part is seen in the logits
    model.save_pretrained(folder)
    return model


def change(folder, drop=(), **values):
    """Other values in config.json."""
    path = folder / "config.json"
    stored = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in stored.items() if key not in drop}))


def alone(pretrained):
    """Our network with the weights of a folder."""
    model = Transformer(FixedShape(pretrained.base, pretrained.arch), seed=None)
    model.load_state_dict(pretrained.weights, strict=False)
    return model.eval()


@torch.no_grad()
def difference(folder, order="leading", seq=64):
    """Of our logits from those of transformers' class of the same folder, relative to the largest logit."""
    check_pretrained(folder)
    pretrained = read_pretrained(folder, order)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    length = min(seq, pretrained.base.max_seq)
    tokens = torch.randint(pretrained.base.vocab_size, (2, length), generator=torch.Generator().manual_seed(1))
    expected = model(tokens).logits
    assert expected.std() > 0.05
    return float((alone(pretrained)(tokens) - expected).abs().max() / expected.abs().max())
