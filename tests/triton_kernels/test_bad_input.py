"""Wrong calls are refused in one line that names the argument, before anything is launched."""

import pytest
import torch

from llmnas.triton_kernels import reference, ternary_pack, tiles
from llmnas.triton_kernels.act_quant import act_quant
from llmnas.triton_kernels.checks import MAX_ROW, interpreted, row_block, whole_groups
from llmnas.triton_kernels.mlgru_scan import mlgru_scan
from llmnas.triton_kernels.rmsnorm_quant import rmsnorm_quant
from llmnas.triton_kernels.swiglu_norm_quant import swiglu_norm_quant
from llmnas.triton_kernels.ternary_linear import Quantised, ternary_linear
from llmnas.triton_kernels.ternary_matmul import ternary_matmul
from llmnas.triton_kernels.xnor_matmul import pack1, xnor_matmul

ONE = torch.tensor(1.0)


def codes(*shape):
    return torch.zeros(shape, dtype=torch.int8)


def packed(*shape):
    return torch.zeros(shape, dtype=torch.uint8)


CALLS = {
    "x: dtype int32": lambda: act_quant(torch.zeros(2, 2, dtype=torch.int32)),
    r"x: shape \[2\], must be \[any, any\]": lambda: act_quant(torch.zeros(2)),
    "x: last axis has stride 3": lambda: act_quant(torch.zeros(2, 6)[:, ::3]),
    "x: on cpu, a Triton kernel needs a GPU": lambda: act_quant(torch.zeros(2, 2)),
    r"gain: shape \[3\], must be \[2\]": lambda: rmsnorm_quant(torch.zeros(2, 2), torch.ones(3), 1e-6),
    "residual: dtype bfloat16": lambda: rmsnorm_quant(
        torch.zeros(2, 2), torch.ones(2), 1e-6, torch.zeros(2, 2, dtype=torch.bfloat16)
    ),
    r"up: shape \[2, 3\]": lambda: swiglu_norm_quant(torch.zeros(2, 2), torch.zeros(2, 3), torch.ones(2), 1e-6),
    "gamma: dtype float64": lambda: ternary_pack.pack2(torch.zeros(2, 64), torch.tensor(1.0, dtype=torch.float64)),
    "gamma: shape": lambda: ternary_pack.pack2(torch.zeros(2, 64), torch.ones(2)),
    "in_features of codes: 100 cuts a group": lambda: ternary_matmul(codes(2, 100), torch.ones(2), packed(4, 25), ONE),
    r"packed: shape \[4, 16\], must be \[any, 32\]": lambda: ternary_matmul(
        codes(2, 128), torch.ones(2), packed(4, 16), ONE
    ),
    "packed: dtype int8": lambda: ternary_matmul(codes(2, 64), torch.ones(2), codes(4, 16), ONE),
    "packed: on meta, codes is on cpu": lambda: ternary_matmul(
        codes(2, 64), torch.ones(2), packed(4, 16).to("meta"), ONE
    ),
    r"packed: shape \[4, 16\], must be \[any, 32\] *$": lambda: ternary_pack.unpack3(packed(4, 16), 81),
    "in_features of x: 33 cuts a group": lambda: whole_groups("in_features of x", 33, 32),
    "beta": lambda: xnor_matmul(torch.zeros(2, 1, dtype=torch.int32), torch.zeros(3, 1, dtype=torch.int32), ONE, ONE),
    "kept: 65536 sequences, at most 65535": lambda: mlgru_scan(*[torch.zeros(1, 1, 1).expand(65536, 1, 1)] * 2),
    "forget: dtype float32": lambda: mlgru_scan(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3, dtype=torch.float64)),
    "starts: dtype int64": lambda: mlgru_scan(
        torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), None, torch.zeros(1, 2, dtype=torch.int64)
    ),
    "weight: dtype int8": lambda: ternary_linear(
        Quantised(codes(2, 64), torch.ones(2), torch.zeros(2, 64)), codes(4, 64), ONE, 4
    ),
    r"block \[9, 64\]": lambda: ternary_linear(
        Quantised(codes(2, 64), torch.ones(2), torch.zeros(2, 64)), torch.zeros(4, 64), ONE, 9
    ),
}


@pytest.mark.parametrize("message", CALLS)
def test_refused_in_one_line(message):
    assert not interpreted()
    with pytest.raises(ValueError, match=message) as error:
        CALLS[message]()
    assert "\n" not in str(error.value)


def test_rows_that_no_program_can_hold():
    for size in (0, MAX_ROW + 1):
        with pytest.raises(ValueError, match=f"rows of {size}"):
            row_block("x", size)


def test_every_width_of_a_recurrence_has_a_tile_that_a_kernel_can_have():
    """Powers of two, of any width: 17 to 31 once had none."""
    for width in range(1, 200):
        steps, channels, _ = tiles.scan(width)
        assert all(size & (size - 1) == 0 and size >= 16 for size in (steps, channels))


def test_pack1_needs_a_gpu():
    with pytest.raises(ValueError, match="needs a GPU"):
        pack1(torch.zeros(2, 32))


def test_wrong_codes_are_found():
    data = reference.pack2(torch.randint(-1, 2, (5, 128), dtype=torch.int8))
    reference.check_codes(data)
    data[3, 17] |= 0b1100
    with pytest.raises(ValueError, match="row 3, byte 17 holds code 3"):
        reference.check_codes(data)


def test_all_243_bytes_of_base_3_and_no_other_order():
    """byte = ceil(256 n / 243) is undone by the multiplications, digit by digit, most significant first."""
    for number in range(243):
        byte, digits = (256 * number + 242) // 243, []
        rest = byte
        for _ in range(5):
            digits.append((rest * 3) >> 8)
            rest = (rest * 3) & 255
        assert sum(digit * 3 ** (4 - place) for place, digit in enumerate(digits)) == number
        column = torch.tensor(digits, dtype=torch.int8)[:, None].repeat(1, 16).reshape(1, 80) - 1
        assert set(reference.pack3(column)[0].tolist()) == {byte}
        assert torch.equal(reference.unpack3(reference.pack3(column), 80), column)
