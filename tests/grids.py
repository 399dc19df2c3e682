"""Weights as they are sliced: heads, their queries and channels on axes of their own."""

from llmnas.nn.elastic_linear import ElasticLinear


def grid(linear):
    """The weight of a linear layer, [*rows, *columns]: a view."""
    return linear.weight.view(*linear.rows, *linear.columns)


def sliced(model):
    """Every parameter by its name, as it is sliced: views, without gradient."""
    found = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for path, layer in model.named_modules():
        if isinstance(layer, ElasticLinear):
            found[f"{path}.weight"] = grid(layer).detach()
            if layer.bias is not None:
                found[f"{path}.bias"] = layer.bias.detach().view(layer.rows)
    return found
