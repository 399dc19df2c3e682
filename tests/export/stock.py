"""A stock transformers model made of ours, without the disk."""

from transformers import AutoModelForCausalLM

from llmnas.export import stock_class, stock_shape
from llmnas.export.config import has_output_bias, stock_config
from llmnas.export.weights import stock_weights


def stock_model(model):
    base, arch = model.base, model.envelope
    kind, shape = stock_class(base, arch), stock_shape(base, arch)
    stock = AutoModelForCausalLM.from_config(stock_config(base, arch, kind, shape, None)).eval()
    weights = stock_weights(model, shape, o_bias=has_output_bias(kind, base))
    if base.tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    stock.load_state_dict(weights, strict=True)
    return stock
