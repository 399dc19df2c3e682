"""A stock transformers model made of ours, without the disk."""

import re

import torch
from transformers import AutoModelForCausalLM

from llmnas.export import stock_class, stock_shape
from llmnas.export.config import has_output_bias, stock_config
from llmnas.export.weights import stock_weights


def stock_model(model):
    base, arch = model.base, model.envelope
    kind, shape = stock_class(base, arch), stock_shape(base, arch)
    stock = AutoModelForCausalLM.from_config(stock_config(base, arch, kind, shape, None)).eval()
    weights = stacked(stock_weights(model, shape, o_bias=has_output_bias(kind, base)))
    if base.tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    stock.load_state_dict(weights, strict=True)
    return stock


def stacked(weights):
    """Experts as transformers 5 holds them in memory: gate above up, one tensor for all experts of a layer."""
    found, experts = {}, {}
    for name, weight in weights.items():
        layer = re.match(r"(model\.layers\.\d+)\.(?:mlp|block_sparse_moe)\.(.*)", name)
        expert = layer and re.match(r"experts\.(\d+)\.(\w+)\.weight", layer[2])
        if expert:
            experts.setdefault(layer[1], {})[int(expert[1]), expert[2].removesuffix("_proj")] = weight
        else:
            found[f"{layer[1]}.mlp.{layer[2]}" if layer else name] = weight
    names = {"w1": "gate", "w3": "up", "w2": "down"}
    for layer, parts in experts.items():
        parts = {(e, names.get(name, name)): weight for (e, name), weight in parts.items()}
        count = 1 + max(e for e, _ in parts)
        pairs = [torch.cat([parts[e, "gate"], parts[e, "up"]]) for e in range(count)]
        found[f"{layer}.mlp.experts.gate_up_proj"] = torch.stack(pairs)
        found[f"{layer}.mlp.experts.down_proj"] = torch.stack([parts[e, "down"] for e in range(count)])
    return found
