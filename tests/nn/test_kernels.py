"""The door to the kernels on the CPU: same integers as the Triton twins, sliced without a copy, refused in one line."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llmnas.nn import kernels, mlgru, packed_cpu
from llmnas.nn.ternary import magnitude, read_input
from llmnas.triton_kernels import reference


def packed(n, k):
    weight = torch.randn(n, k)
    return weight, kernels.pack(weight, weight.abs().mean())


def product(x, weight):
    return kernels.packed_linear(kernels.quantise(x, packed=True), weight)


@pytest.fixture(params=[True, False], ids=["vnni", "any processor"])
def processor(request, monkeypatch):
    """The two ways of the CPU; the first only where the processor has it."""
    if request.param and not packed_cpu.HAS_VNNI:
        pytest.skip("this processor has no AVX-512 VNNI")
    monkeypatch.setattr(packed_cpu, "HAS_VNNI", request.param)


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("m", [1, 3, packed_cpu.DIRECT_TOKENS, packed_cpu.DIRECT_TOKENS + 1, 40])
@pytest.mark.parametrize(("n", "k"), [(1, 64), (7, 192), (500, 704), (727, 64)])
def test_packed_product_is_exact(m, n, k):
    _, weight = packed(n, k)
    x = torch.randn(m, k)
    codes, scales = reference.act_quant(x)
    assert torch.equal(product(x, weight), reference.ternary_matmul(codes, scales, weight.codes, weight.gamma))


@pytest.mark.parametrize("shape", [(1, 64), (7, 63), (0, 64), (3, 4096)])
def test_tokens_are_quantised_as_the_twin_does(shape):
    x = torch.randn(shape) * torch.logspace(-6, 3, max(shape[0], 1))[: shape[0], None]
    codes, scales = packed_cpu.quantise(x)
    want, want_scales = reference.act_quant(x)
    assert torch.equal(codes, want)
    assert torch.equal(scales, want_scales)


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("m", [0, 1, 7, 40])
@pytest.mark.parametrize(("n", "k"), [(1, 32), (7, 96), (500, 704), (130, 64)])
def test_packed_binary_products_are_exact(m, n, k):
    """Signs against signs, and integers against signs, as in float64; rows of a slice lie apart."""
    weight, x = torch.randn(n, k + 64), torch.randn(m, k)
    bits, alpha = kernels.pack_signs(weight), magnitude(weight, "binary")
    assert bits.nbytes * 32 == weight.nbytes
    bits, signs = bits[:, : k // 32], torch.where(weight[:, :k] >= 0, 1.0, -1.0).double()
    found = kernels.packed_binary_linear(x, bits, alpha)
    wanted = torch.where(x >= 0, 1.0, -1.0).double() @ signs.T
    assert torch.equal(found, wanted.float() * x.abs().mean(-1, keepdim=True) * alpha.flatten())
    codes = kernels.quantise(x, packed=True)
    wanted = codes.codes.double() @ signs.T
    assert torch.equal(
        kernels.packed_binary_linear(codes, bits, alpha), wanted.float() * (alpha.flatten() / codes.scales[:, None])
    )


@pytest.mark.usefixtures("processor")
def test_largest_sums_do_not_wrap():
    weight = kernels.PackedTernary(reference.pack2(torch.ones(1, 1 << 16, dtype=torch.int8)), torch.tensor(1.0))
    assert product(-127 * torch.ones(1, 1 << 16), weight).item() == -127 * 65536


@pytest.mark.usefixtures("processor")
def test_nothing_is_read_or_written_outside(monkeypatch):
    """Tensors between guard regions: loud codes around the weight, outputs that must stay."""
    n, k = 5, 192
    weight = reference.pack2(torch.randint(-1, 2, (n, k), dtype=torch.int8))
    buffer = torch.full((64 + n * k // 4 + 64,), 0xFF, dtype=torch.uint8)
    inside = buffer[64 : 64 + n * k // 4].view(n, k // 4)
    inside.copy_(weight)
    buffers, real = [], torch.empty

    def guarded(*shape, dtype=torch.float32):
        shape = torch.Size(shape[0] if isinstance(shape[0], tuple) else shape)
        whole = real(shape.numel() + 128, dtype=dtype).fill_(77)
        buffers.append(whole)
        return whole[64 : 64 + shape.numel()].view(shape)

    x = torch.randn(3, k)
    want = reference.ternary_matmul(*reference.act_quant(x), weight, torch.tensor(1.0))
    monkeypatch.setattr(torch, "empty", guarded)
    assert torch.equal(product(x, kernels.PackedTernary(inside, torch.tensor(1.0))), want)
    assert len(buffers) >= 4
    for whole in buffers:
        assert (whole[:64] == 77).all()
        assert (whole[-64:] == 77).all()
    assert (buffer[:64] == 0xFF).all()


def test_packed_layer_is_the_fake_quantised_layer_in_double_precision():
    weight, small = packed(70, 128)
    x = torch.randn(2, 5, 128)
    gamma = magnitude(weight, "ternary").double()
    dense = (weight.double() / gamma).round().clamp(-1, 1) * gamma
    want = read_input(x.double(), "ternary") @ dense.T
    torch.testing.assert_close(product(x, small).double(), want, rtol=1e-5, atol=1e-4)


def test_a_slice_is_a_view_and_is_what_slicing_the_weight_gives():
    weight, whole = packed(20, 256)
    x = torch.randn(4, 256)
    for n in (1, 7, 20):
        for k in (64, 128, 192, 256):
            part = whole.leading(n, k)
            assert part.codes.data_ptr() == whole.codes.data_ptr()
            alone = kernels.pack(weight[:n, :k], whole.gamma)
            assert torch.equal(part.codes, alone.codes)
            assert torch.equal(product(x[:, :k], part), product(x[:, :k], alone))


def test_two_bits_are_two_bits():
    weight, small = packed(64, 256)
    assert small.codes.nbytes * 16 == weight.nbytes


def test_threads_share_the_rows(monkeypatch):
    _, weight = packed(3000, 512)
    x = torch.randn(2, 512)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = product(x, weight)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(product(x, weight), alone)


def test_no_tokens_and_one_vector():
    _, weight = packed(5, 64)
    assert product(torch.zeros(0, 64), weight).shape == (0, 5)
    assert product(torch.ones(64), weight).shape == (5,)


@pytest.mark.parametrize("kind", ["ternary", "binary"])
def test_integer_product_is_the_detach_trick_in_double_precision(kind):
    """Tokens and weights quantised in floats, their gradients let through (Bengio et al. 2013)."""
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(n, 40, generator=generator, dtype=torch.float64, requires_grad=True) for n in (12, 6))
    grad, scale = torch.randn(6, 12, generator=generator, dtype=torch.float64), magnitude(weight, kind)
    signs = torch.where(weight >= 0, 1.0, -1.0).double()
    code = (weight.detach() / scale).round().clamp(-1, 1) if kind == "ternary" else signs
    step = 127 / x.detach().abs().amax(1, keepdim=True)
    seen = x + ((x * step).round() / step - x).detach()
    want = seen @ (weight + (code * scale - weight).detach()).T
    found = kernels.code_linear(kernels.quantise(x, packed=False), weight, scale, kind)
    torch.testing.assert_close(found, want)
    for have, expect in zip(
        torch.autograd.grad(found, (x, weight), grad), torch.autograd.grad(want, (x, weight), grad), strict=True
    ):
        torch.testing.assert_close(have, expect)


def test_between_forward_and_backward_integers_are_bytes_and_kept_once():
    """Three projections of the same tokens: their bytes once, and the codes of each weight."""
    weights = [torch.randn(64, 128, requires_grad=True) for _ in range(3)]
    seen, kept = kernels.quantise(torch.randn(32, 128, requires_grad=True), packed=False), {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ys = [kernels.code_linear(seen, weight, weight.detach().abs().mean(), "ternary") for weight in weights]
    assert len(ys) == 3
    large = [tensor for tensor in kept.values() if tensor.numel() > 32]
    assert sum(tensor.nbytes for tensor in large) == 32 * 128 + 3 * 64 * 128


def test_layers_scan_through_the_door():
    assert mlgru.scan is kernels.mlgru_scan


ONE = torch.tensor(1.0)


def bits(*shape, dtype=torch.int32):
    return torch.zeros(shape, dtype=dtype)


def two_bits(gamma=ONE, device="cpu"):
    """A packed weight [4, 64], perhaps with parts where they do not belong."""
    return kernels.PackedTernary(torch.zeros(4, 16, dtype=torch.uint8, device=device), gamma)


def by_codes(weight, scale, kind="ternary"):
    """Two tokens of 64 features times a latent weight."""
    return kernels.code_linear(kernels.quantise(torch.ones(2, 64), packed=False), weight, scale, kind)


def with_codes(codes=torch.int8, scales=2, device="cpu"):
    """Two tokens of 64 features as integers that `quantise` did not make."""
    made = kernels.Codes(torch.ones(2, 64, dtype=codes), torch.ones(scales, device=device), torch.ones(2, 64))
    return kernels.packed_linear(made, two_bits())


def scan(forget=(2, 3, 5), state=None, starts=None, dtype=torch.bool, device="cpu"):
    """Two sequences of three tokens and five channels, the other parts of the given shapes."""
    state = None if state is None else torch.ones(state, device=device)
    starts = None if starts is None else torch.zeros(starts, dtype=dtype)
    return kernels.mlgru_scan(torch.ones(forget), torch.ones(2, 3, 5), state, starts)


BAD = {
    "in_features of weight: 40": lambda: kernels.pack_signs(torch.zeros(4, 40)),
    "weight: dtype int8, must be float32, .*, float64": lambda: kernels.pack_signs(bits(4, 64, dtype=torch.int8)),
    r"packed: shape \[4, 1\], must be \[any, 2\]": lambda: kernels.packed_binary_linear(
        torch.zeros(1, 64), bits(4, 1), torch.ones(4)
    ),
    "in_features of x: 40": lambda: kernels.packed_binary_linear(torch.zeros(1, 40), bits(4, 1), torch.ones(4)),
    "x: dtype int64": lambda: kernels.packed_binary_linear(
        torch.zeros(1, 32, dtype=torch.int64), bits(4, 1), torch.ones(4)
    ),
    "packed: dtype int8, must be int32": lambda: kernels.packed_binary_linear(
        torch.zeros(1, 32), bits(4, 1, dtype=torch.int8), torch.ones(4)
    ),
    r"alpha: shape \[5\], must be \[4\]": lambda: kernels.packed_binary_linear(
        torch.zeros(1, 32), bits(4, 1), torch.ones(5)
    ),
    "alpha: on meta, x is on cpu": lambda: kernels.packed_binary_linear(
        torch.zeros(1, 32), bits(4, 1), torch.ones(4, device="meta")
    ),
    r"gamma: shape \[2\], must hold one number": lambda: product(torch.zeros(2, 64), two_bits(torch.ones(2))),
    "gamma: dtype int64": lambda: product(torch.zeros(2, 64), two_bits(torch.tensor(1))),
    "gamma: on meta, codes is on cpu": lambda: product(torch.zeros(1, 64), two_bits(torch.ones((), device="meta"))),
    "packed: on meta, codes is on cpu": lambda: product(torch.zeros(1, 64), two_bits(device="meta")),
    "packed: last axis has stride 2": lambda: product(
        torch.zeros(1, 64), kernels.PackedTernary(torch.zeros(4, 32, dtype=torch.uint8)[:, ::2], torch.ones(()))
    ),
    "in_features of codes: 60": lambda: product(torch.zeros(1, 60), two_bits()),
    r"packed: shape \[4, 16\], must be \[any, 32\]": lambda: product(torch.zeros(1, 128), two_bits()),
    "in_features of codes: 131136, must be at most 131072": lambda: product(
        torch.zeros(1, 131136), kernels.PackedTernary(torch.zeros(1, 32784, dtype=torch.uint8), torch.ones(()))
    ),
    "tokens: .* of torch.int8, must be floats": lambda: kernels.quantise(
        torch.zeros(1, 64, dtype=torch.int8), packed=True
    ),
    "in_features of weight: 100": lambda: kernels.pack(torch.zeros(4, 100), torch.tensor(1.0)),
    "weight: dtype int16": lambda: kernels.pack(bits(4, 64, dtype=torch.int16), torch.tensor(1.0)),
    r"gamma: shape \[4, 1\], must hold one number": lambda: kernels.pack(torch.zeros(4, 64), torch.ones(4, 1)),
    "gamma: on meta, weight": lambda: kernels.pack(torch.zeros(4, 64), torch.ones((), device="meta")),
    "in_features of the slice: 65": lambda: packed(4, 128)[1].leading(4, 65),
    r"slice \[9, 64\]: the packed weight is \[4, 128\]": lambda: packed(4, 128)[1].leading(9, 64),
    r"slice \[4, 192\]": lambda: packed(4, 128)[1].leading(4, 192),
    "codes: dtype uint8, must be int8": lambda: with_codes(torch.uint8),
    r"scales: shape \[1\], must be \[2\]": lambda: with_codes(scales=1),
    "scales: on meta, codes is on cpu": lambda: with_codes(device="meta"),
    "weight: dtype uint8": lambda: by_codes(bits(4, 64, dtype=torch.uint8), torch.ones(1)),
    r"weight: shape \[4, 128\], must be \[any, 64\]": lambda: by_codes(torch.zeros(4, 128), torch.ones(1)),
    "weight: on meta, codes": lambda: by_codes(torch.zeros(4, 64, device="meta"), torch.ones(1)),
    r"scale: shape \[4\], must be \[1\]": lambda: by_codes(torch.zeros(4, 64), torch.ones(4)),
    r"scale: shape \[1\], must be \[4\]": lambda: by_codes(torch.zeros(4, 64), torch.ones(1), "binary"),
    r"alpha: shape \[1\], must be \[4\]": lambda: kernels.binary_linear(
        torch.ones(2, 64), torch.zeros(4, 64), torch.ones(1)
    ),
    r"weight: shape \[4, 32\], must be \[any, 64\]": lambda: kernels.binary_linear(
        torch.ones(2, 64), torch.zeros(4, 32), torch.ones(4)
    ),
    "weight: on meta, x": lambda: kernels.binary_linear(
        torch.ones(2, 64), torch.zeros(4, 64, device="meta"), torch.ones(4)
    ),
    r"forget: shape \[1, 3, 5\], must be \[2, 3, 5\]": lambda: scan((1, 3, 5)),
    r"state: shape \[1, 5\], must be \[2, 5\]": lambda: scan(state=(1, 5)),
    "state: on meta, kept is on cpu": lambda: scan(state=(2, 5), device="meta"),
    r"starts: shape \[2, 1\], must be \[2, 3\]": lambda: scan(starts=(2, 1)),
    "starts: dtype int64, must be bool": lambda: scan(starts=(2, 3), dtype=torch.int64),
}


@pytest.mark.parametrize("message", BAD)
def test_refused_in_one_line(message):
    with pytest.raises(ValueError, match=message) as error:
        BAD[message]()
    assert "\n" not in str(error.value)


def test_the_door_opens_neither_triton_nor_numba():
    """A machine without a GPU pays for neither until it uses packed weights."""
    code = "import sys, llmnas.nn.kernels; print(*({'triton', 'numba'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == ""


@pytest.mark.full
def test_torchao_agrees():
    """An independent implementation of the layer, in a process of its own: it hooks into torch's functions."""
    pytest.importorskip("torchao.prototype.quantized_training.bitnet")
    script = Path(__file__).with_name("bitnet_oracle.py")
    done = subprocess.run([sys.executable, "-W", "ignore", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
