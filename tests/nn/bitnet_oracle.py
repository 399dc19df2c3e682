"""Ternary layers against torchao's BitLinear, an independent implementation of BitNet b1.58."""

import torch
from torchao.prototype.quantized_training import bitnet

from llmnas.nn.elastic_linear import ElasticLinear
from llmnas.nn.lowbit import inputs
from llmnas.triton_kernels import reference


def main():
    """Forward and both gradients."""
    weight, x, grad = torch.randn(64, 128), torch.randn(16, 128), torch.randn(16, 64)
    ours, theirs = weight.clone(), weight.clone()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer = ElasticLinear(128, 64, kinds=("ternary",))
    layer.weight = torch.nn.Parameter(ours)
    y = layer(inputs(a, "ternary", layer), 64, "ternary")
    y.backward(grad)
    scale = bitnet.get_bitnet_scale(theirs)
    assert torch.equal(bitnet.quantize_bitnet_weight(theirs, scale), reference.ternary_codes(weight, scale))
    wrapped = torch.nn.Parameter(bitnet.BitNetTrainingLinearWeight(theirs))
    # its backward wants a third argument to be there
    want = torch.nn.functional.linear(b, wrapped, torch.zeros(64))
    want.backward(grad)
    torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.weight.grad, getattr(wrapped.grad, "_data", wrapped.grad), rtol=1e-4, atol=1e-3)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
